// The connection to the server: its events, and its HTTP endpoints.
import { errorText, text } from "./view.js";

const token = new URLSearchParams(location.hash.slice(1)).get("token");
export const model = new URLSearchParams(location.search).get("model"); // of a server with several
const FIRST_DELAY = 500; // ms
const MAX_UNSENT = 1_000_000; // bytes that wait in the socket before its connection counts as lost
const IDLE = 1000; // the code with which the server closes a connection
const isLocal = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);

// Connect again, ever more slowly, whenever the connection ends; after one that was idle, once the user is back.
export class Wire {
  constructor(onEvent, onState) {
    Object.assign(this, { onEvent, onState, delay: FIRST_DELAY });
    addEventListener("online", () => this.isOpen || this.restart());
    addEventListener("offline", () => isLocal || this.lose());
    this.connect();
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  connect() {
    this.onState("connecting");
    const protocols = token ? ["realtime", `openai-insecure-api-key.${token}`] : ["realtime"];
    const query = model ? `?model=${encodeURIComponent(model)}` : "";
    this.socket = new WebSocket(`${location.origin.replace("http", "ws")}/v1/realtime${query}`, protocols);
    this.socket.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      if (event.type === "session.created") this.delay = FIRST_DELAY; // a full server refuses after the socket is open
      this.onEvent(event);
    };
    this.socket.onclose = ({ code }) => (code === IDLE ? this.pause() : this.lose());
  }

  drop() {
    clearTimeout(this.timer);
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close();
  }

  pause() {
    this.onState("paused");
    const control = new AbortController();
    const resume = () => (control.abort(), this.connect());
    const { signal } = control;
    for (const kind of ["pointermove", "pointerdown", "keydown"]) addEventListener(kind, resume, { signal });
  }

  lose() {
    this.drop();
    this.onState("off");
    this.timer = setTimeout(() => this.connect(), this.delay);
    this.delay = Math.min(2 * this.delay, 10000);
  }

  restart() {
    this.drop();
    this.connect();
  }

  send(type, fields = {}) {
    if (!this.isOpen) return;
    this.socket.send(JSON.stringify({ type, ...fields }));
    if (this.socket.bufferedAmount > MAX_UNSENT) this.lose();
  }
}

// Throw an error of the network as the text of a key, others as they are.
export const explain = (key) => (error) => {
  throw error instanceof TypeError ? new Error(text(key)) : error;
};

async function request(path, options) {
  if (token) options.headers = { ...options.headers, Authorization: `Bearer ${token}` };
  const response = await fetch(path, options).catch(explain("notConnected"));
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error ? errorText(error) : `${response.status} ${response.statusText}`);
}

export const get = (path) => request(path, {});

export function post(path, body, options = {}) {
  if (body instanceof FormData) return request(path, { method: "POST", body, ...options });
  const headers = { "Content-Type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), ...options });
}

// The connection to the server: its events, its files, and 16-bit PCM.
const token = new URLSearchParams(location.hash.slice(1)).get("token");

export const OUTPUT_RATE = 24000;
export const INPUT_RATE = 16000;

export function toBase64(pcm) {
  const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

export function toSamples(bytes) {
  const pcm = new Int16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 1);
  return Float32Array.from(pcm, (value) => value / 32768);
}

export const toBytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
export const fromBase64 = (text) => toSamples(toBytes(text));

// Connect again, ever more slowly, whenever the connection ends.
export class Wire {
  constructor(onEvent, onState) {
    Object.assign(this, { onEvent, onState, delay: 500 });
    this.connect();
  }

  connect() {
    this.onState("connecting");
    const protocols = token ? ["realtime", `openai-insecure-api-key.${token}`] : ["realtime"];
    this.socket = new WebSocket(`${location.origin.replace("http", "ws")}/v1/realtime`, protocols);
    this.socket.onopen = () => (this.delay = 500);
    this.socket.onmessage = ({ data }) => this.onEvent(JSON.parse(data));
    this.socket.onclose = () => {
      this.onState("off");
      this.timer = setTimeout(() => this.connect(), this.delay);
      this.delay = Math.min(2 * this.delay, 10000);
    };
  }

  restart() {
    clearTimeout(this.timer);
    this.socket.onclose = null;
    this.socket.close();
    this.connect();
  }

  send(type, fields = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }
}

async function request(path, options) {
  if (token) options.headers = { ...options.headers, Authorization: `Bearer ${token}` };
  const response = await fetch(path, options);
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response;
}

export const get = (path) => request(path, {});

export function post(path, body, options = {}) {
  if (body instanceof FormData) return request(path, { method: "POST", body, ...options });
  const headers = { "Content-Type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), ...options });
}

// Decode any audio file that the browser knows, and write it as a mono WAV file that the server knows.
export async function fileToWav(file) {
  const context = new OfflineAudioContext(1, 1, INPUT_RATE);
  const samples = (await context.decodeAudioData(await file.arrayBuffer())).getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const words = (place, text) => [...text].forEach((c, i) => view.setUint8(place + i, c.charCodeAt(0)));
  words(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  words(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, INPUT_RATE, true);
  view.setUint32(28, 2 * INPUT_RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  words(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Uint8Array(view.buffer);
}

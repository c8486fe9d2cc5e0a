// The page: a conversation by voice or text over /v1/realtime.
import { clearSound, endSound, play, startMicrophone, startPlayer, stopMicrophone } from "./sound.js";
import { EXAMPLES } from "./strings.js";
import * as view from "./view.js";
import { fromBase64, INPUT_RATE, OUTPUT_RATE, post, toBase64, toSamples, Wire } from "./wire.js";
import "./files.js";

const { $, messages, showError, showState, text } = view;
let model = "";
let isSending = false; // whether the microphone's sound goes to the server
let isHeld = false; // the button or key of push-to-talk
let numSent = 0; // samples since it was pressed
let response = null; // {item, hasSound, isStopped, waited} of the response in progress
let isPlaying = false;
let stoppedAt = 0; // time when the user's turn ended, as the page learns it
let reading = null; // ends the reading of a text answer

const MIN_SAMPLES = 0.2 * INPUT_RATE; // a shorter press of push-to-talk was a mistake
const LATE = ["response_cancel_not_active", "item_not_found"]; // errors about answers that the server has done with

const pushToTalk = () => document.querySelector("[name=mode]:checked").value === "push";

function showMicrophone() {
  const key = pushToTalk() ? (isSending ? "release" : "hold") : isSending ? "stop" : "start";
  $("microphone").textContent = text(key);
  $("microphone").setAttribute("aria-pressed", isSending);
}

// server

const on = {
  "session.created"({ session }) {
    model = session.model;
    configure();
    response = null;
    showError("");
    showState("ready");
  },
  "input_audio_buffer.speech_started"() {
    stopSound(); // the server stops the answer
    showState("listening");
  },
  "input_audio_buffer.speech_stopped"() {
    stoppedAt = performance.now();
    showState("thinking");
  },
  "conversation.item.added"({ item }) {
    if (item.role === "user") view.message(item.id, "user");
    if (item.content[0]?.type === "input_text") view.setWords(item.id, "user", item.content[0].text);
  },
  "conversation.item.input_audio_transcription.completed"({ item_id, transcript }) {
    view.setWords(item_id, "user", transcript || text("noSpeech"));
  },
  "response.created"() {
    response = { item: null, hasSound: false, isStopped: false };
    showState("thinking");
  },
  "response.output_item.added"({ item }) {
    response.item = item.id;
    view.message(item.id, "assistant");
  },
  "response.output_audio_transcript.delta"({ item_id, delta }) {
    view.setWords(item_id, "assistant", view.message(item_id, "assistant").turn.text + delta);
  },
  "response.output_audio.delta"({ item_id, delta }) {
    if (response.isStopped) return;
    response.hasSound = true;
    const samples = fromBase64(delta);
    play(item_id, samples);
    view.showSound(item_id, samples);
  },
  "response.output_audio.done"({ item_id }) {
    endSound(item_id);
  },
  "response.done"({ response: done }) {
    const ended = response;
    response = null;
    if (done.status === "failed") showError(done.status_details.error.message);
    if (!ended?.item) return showState("ready");
    const { turn, box } = messages.get(ended.item);
    Object.assign(turn, { status: done.status, usage: done.usage, server: done.metadata });
    if (ended.waited) view.showTimes(ended.item, parts(done.metadata, ended.waited));
    view.showDecoding(ended.item, done.metadata);
    if (done.status === "cancelled") box.append(view.label("interrupted", "div"));
    else if (!ended.hasSound && !ended.isStopped && turn.text.trim()) readAloud(ended.item, turn.text);
    if (!isPlaying) showState("ready");
  },
  "vita.queue"({ place }) {
    showState("thinking", `${text("place")} ${place}`);
  },
  error({ error }) {
    if (!LATE.includes(error.code)) showError(error.message);
  },
};

const wire = new Wire(
  (event) => on[event.type]?.(event),
  (next) => {
    if (next === "off" && messages.size) {
      stopSound();
      view.closeConversation();
    }
    showState(next);
  },
);

function configure() {
  const number = $("acceptance").value;
  wire.send("session.update", {
    session: {
      type: "realtime",
      instructions: $("instructions").value,
      audio: {
        input: {
          format: { type: "audio/pcm", rate: INPUT_RATE },
          turn_detection: pushToTalk() ? null : { type: "server_vad" },
          transcription: { model },
        },
      },
      generation: { plan: $("plan").value || null, acceptance: number === "" ? null : Number(number) },
    },
  });
}

async function ask(question) {
  await interrupt();
  stoppedAt = performance.now();
  const item = { type: "message", role: "user", content: [{ type: "input_text", text: question }] };
  wire.send("conversation.item.create", { item });
  wire.send("response.create");
}

// sound

function heard({ state, item, level }) {
  if (level !== undefined) $("level-out").value = level;
  if (state === "started") {
    isPlaying = true;
    showState("speaking");
    const waited = performance.now() - stoppedAt;
    if (response?.item === item) response.waited = waited;
    else if (messages.get(item)?.turn.server) view.showTimes(item, parts(messages.get(item).turn.server, waited));
  }
  if (state === "ended") {
    soundIsOver();
    showState("ready");
  }
}

function soundIsOver() {
  isPlaying = false;
  $("level-out").value = 0;
}

function truncate(item, played) {
  const milliseconds = Math.floor((1000 * played) / OUTPUT_RATE);
  messages.get(item).turn.heardMilliseconds = milliseconds;
  wire.send("conversation.item.truncate", { item_id: item, content_index: 0, audio_end_ms: milliseconds });
}

// The milliseconds from the end of speech to the first sound that was heard; `rest` is network, page and sound card.
function parts(server, waited) {
  const times = {};
  for (const name of ["vad", "encoder", "model", "decoder"]) times[name] = Number(server[`${name}_ms`] ?? 0);
  const known = times.encoder + times.model + times.decoder;
  return { ...times, rest: Math.max(0, waited - known) };
}

// Empty the player at once, and tell the server how much of the answer was heard.
async function stopSound() {
  reading?.abort();
  const stopped = response;
  if (stopped) stopped.isStopped = true;
  const { item, played } = await clearSound();
  soundIsOver();
  if (messages.has(item)) truncate(item, played);
  else if (messages.has(stopped?.item)) truncate(stopped.item, 0); // not after the conversation has ended
}

async function interrupt() {
  if (response) wire.send("response.cancel");
  await stopSound();
}

// An answer in text alone is read by the model.
async function readAloud(id, words) {
  reading = new AbortController();
  const item = `read-${id}`;
  try {
    const body = { model, input: words.trim(), voice: "default", response_format: "pcm" };
    const reader = (await post("/v1/audio/speech", body, { signal: reading.signal })).body.getReader();
    let odd = new Uint8Array();
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      const bytes = new Uint8Array([...odd, ...value]);
      const whole = bytes.length & ~1;
      odd = bytes.slice(whole);
      play(item, toSamples(bytes.slice(0, whole)));
    }
    endSound(item);
  } catch (error) {
    if (error.name !== "AbortError") showError(error.message);
  }
}

function sendPiece({ pcm, level }) {
  $("level-in").value = isSending ? level : 0;
  if (!isSending) return;
  numSent += pcm.length;
  wire.send("input_audio_buffer.append", { audio: toBase64(pcm) });
}

async function press() {
  isHeld = true;
  try {
    await startPlayer(heard);
    await startMicrophone(sendPiece);
  } catch (error) {
    return showError(`${text("refused")}: ${error.message}`);
  }
  if (pushToTalk() && !isHeld) return; // it was released while the browser asked for permission
  await interrupt();
  wire.send("input_audio_buffer.clear");
  isSending = true;
  numSent = 0;
  showMicrophone();
  showState(pushToTalk() ? "listening" : "ready");
}

function release() {
  isHeld = false;
  if (!isSending) return;
  isSending = false;
  showMicrophone();
  $("level-in").value = 0;
  if (pushToTalk() && numSent >= MIN_SAMPLES) {
    stoppedAt = performance.now();
    wire.send("input_audio_buffer.commit");
    wire.send("response.create");
    return;
  }
  if (!pushToTalk()) stopMicrophone();
  wire.send("input_audio_buffer.clear");
  showState("ready");
}

// controls

const button = $("microphone");
button.addEventListener("click", () => pushToTalk() || (isSending ? release() : press()));
button.addEventListener("pointerdown", () => pushToTalk() && press());
for (const kind of ["pointerup", "pointercancel", "pointerleave", "blur"]) button.addEventListener(kind, () => pushToTalk() && release());
const isHoldKey = (event) => pushToTalk() && [" ", "Enter"].includes(event.key);
button.addEventListener("keydown", (event) => isHoldKey(event) && (event.preventDefault(), event.repeat || press()));
button.addEventListener("keyup", (event) => isHoldKey(event) && release());

for (const input of document.querySelectorAll("[name=mode]")) {
  input.addEventListener("change", () => {
    isSending = false;
    stopMicrophone();
    $("level-in").value = 0;
    configure();
    showMicrophone();
  });
}
for (const id of ["instructions", "plan", "acceptance"]) $(id).addEventListener("change", configure);

$("typed").addEventListener("submit", async (event) => {
  event.preventDefault();
  await startPlayer(heard);
  if ($("text").value.trim()) ask($("text").value.trim());
  $("text").value = "";
});
for (const question of EXAMPLES) {
  const example = view.element("button", "", question);
  example.lang = "en";
  example.addEventListener("click", async () => {
    await startPlayer(heard);
    ask(question);
  });
  $("examples").append(example);
}

$("restart").addEventListener("click", () => {
  stopSound();
  view.clearConversation();
  wire.restart();
});
$("download").addEventListener("click", () => {
  const conversation = { model, instructions: $("instructions").value, generatedBy: "AI", turns: view.turns };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(conversation, null, 2)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
document.addEventListener("language", showMicrophone);

view.showTexts();
showMicrophone();

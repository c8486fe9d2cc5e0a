// A session of /v1/realtime: questions, answers and their sound. input.js adds the events of the user's speech to `on`.
import { setLevel } from "./levels.js";
import { fromBase64, INPUT_RATE, OUTPUT_RATE, toBase64, toFloats } from "./pcm.js";
import { clearSound, endSound, play, startPlayer } from "./sound.js";
import * as transcript from "./transcript.js";
import { $, errorText, showError, showState, text } from "./view.js";
import { Wire } from "./wire.js";

// Errors that are not shown: about answers that the server has done with; the state of the connection tells the last.
const QUIET = ["response_cancel_not_active", "item_not_found", "idle_timeout"];
const VOICE_EVENT = "voice"; // the id of the event that sets the voice prompt

let model = "";
let isOpen = false; // whether the server knows the settings
let response = null; // {item, hasSound, isStopped, waited} of the response in progress
let isPlaying = false;
let stoppedAt = 0; // time when the user's turn ended, as the page learns it
let idle = "ready"; // the state once nothing is in progress
let voice = null; // PCM of the voice prompt
let isVoiceSet = false; // whether the server has one
let onVoiceRefused = () => {};

export const isReady = () => isOpen;
export const modelName = () => model;
export const endTurn = () => (stoppedAt = performance.now());

export function setIdle(state) {
  idle = state;
  settle();
}

function settle() {
  if (isOpen && !response && !isPlaying) showState(idle);
}

// server

export const on = {
  "session.created"({ session }) {
    model = $("model").textContent = session.model;
    isOpen = true;
    isVoiceSet = false;
    configure();
    sendVoice();
    showError("");
    showState(idle);
  },
  "conversation.item.added"({ item }) {
    if (item.role === "user") transcript.message(item.id, "user");
    if (item.content[0]?.type === "input_text") transcript.setWords(item.id, "user", item.content[0].text);
  },
  "conversation.item.truncated"({ item_id, transcript: heard }) {
    if (!transcript.find(item_id)) return;
    transcript.setHeard(item_id, heard);
    transcript.showInterruption(item_id);
  },
  "response.created"() {
    response = { item: null, hasSound: false, isStopped: false };
    showState("thinking");
  },
  "response.output_item.added"({ item }) {
    response.item = item.id;
    transcript.message(item.id, "assistant");
  },
  "response.output_audio_transcript.delta"({ item_id, delta }) {
    transcript.setWords(item_id, "assistant", transcript.find(item_id).turn.text + delta);
  },
  "response.output_audio.delta"({ item_id, delta }) {
    if (response.isStopped) return;
    response.hasSound = true;
    hear(item_id, fromBase64(delta));
  },
  "response.output_audio.done"({ item_id }) {
    endSound(item_id);
  },
  "response.done"({ response: done }) {
    const ended = response;
    response = null;
    if (done.status === "failed") showError(errorText(done.status_details.error));
    const answer = transcript.find(ended?.item);
    if (answer) {
      transcript.complete(answer, done);
      if (ended.waited) transcript.showTimes(ended.item, parts(done.metadata, ended.waited));
      transcript.showDecoding(ended.item, done.metadata);
      transcript.announce(answer);
    }
    if (!ended?.hasSound || ended.isStopped) settle(); // otherwise the end of the sound does
  },
  "vita.queue"({ place }) {
    showState("thinking", `${text("place")} ${place}`);
  },
  error({ error }) {
    if (!QUIET.includes(error.code)) showError(errorText(error));
    if (error.event_id !== VOICE_EVENT) return;
    isVoiceSet = false;
    onVoiceRefused();
  },
};

const wire = new Wire(
  (event) => on[event.type]?.(event),
  (next) => {
    if (isOpen) {
      close();
      transcript.closeConversation();
    }
    showState(next);
  },
);

export const send = (type, fields) => wire.send(type, fields);

function close() {
  isOpen = false;
  stopSound();
  response = null;
  document.dispatchEvent(new Event("disconnected"));
}

export function restart() {
  close();
  transcript.clearConversation();
  wire.restart();
}

export const pushToTalk = () => document.querySelector("[name=mode]:checked").value === "push";

// Send the settings of the page.
export function configure() {
  const acceptance = $("acceptance").value;
  send("session.update", {
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
      generation: { plan: $("plan").value || null, acceptance: acceptance === "" ? null : Number(acceptance) },
    },
  });
}

// Set the voice prompt, PCM at INPUT_RATE or null; `onRefused` is called if the server cannot use it.
export function setVoice(pcm, onRefused) {
  voice = pcm;
  onVoiceRefused = onRefused;
  if (isOpen) sendVoice();
}

function sendVoice() {
  if (!voice && !isVoiceSet) return;
  isVoiceSet = Boolean(voice);
  const voice_prompt = voice && { audio: toBase64(voice), rate: INPUT_RATE };
  send("session.update", { event_id: VOICE_EVENT, session: { type: "realtime", generation: { voice_prompt } } });
}

// Ask a question in writing. Returns whether there is a server to answer it.
export async function ask(question) {
  if (!isOpen) {
    showError(text("notConnected"));
    return false;
  }
  showError("");
  await startPlayer(playerEvent);
  await interrupt();
  endTurn();
  const item = { type: "message", role: "user", content: [{ type: "input_text", text: question }] };
  send("conversation.item.create", { item });
  send("response.create");
  return true;
}

// sound

function hear(item, pcm) {
  play(item, toFloats(pcm));
  transcript.addSound(item, pcm, OUTPUT_RATE);
}

export function playerEvent({ state, item, level }) {
  if (level !== undefined) setLevel(1, level);
  if (state === "started") {
    isPlaying = true;
    showState("speaking");
    showWaiting(item, performance.now() - stoppedAt);
  }
  if (state === "ended") {
    soundIsOver();
    settle();
  }
}

function soundIsOver() {
  isPlaying = false;
  setLevel(1, 0);
}

function showWaiting(item, waited) {
  if (response?.item === item) response.waited = waited; // its parts are not known yet
  else if (transcript.find(item)) transcript.showTimes(item, parts(transcript.find(item).turn.server, waited));
}

// The milliseconds from the end of speech to the first sound that was heard, in parts that add up to it: `vad` is without
// the work that was done while turn detection waited, `rest` is network, page and sound card.
function parts(server, waited) {
  const times = {};
  for (const name of ["vad", "wait", "encoder", "model", "decoder"]) times[name] = Number(server[`${name}_ms`] ?? 0);
  const early = Number(server.early_ms ?? 0);
  const known = times.wait + times.encoder + times.model + times.decoder - early;
  return { ...times, vad: Math.max(0, times.vad - early), rest: Math.max(0, Math.round(waited - known)) };
}

// Empty the player at once, and tell the server how much of the answer was heard. `beganAt` is the time when the user
// began to speak over it.
export async function stopSound(beganAt = null) {
  const stopped = response;
  if (stopped) stopped.isStopped = true;
  const { item, played } = await clearSound();
  const answer = transcript.find(item ?? stopped?.item);
  soundIsOver();
  if (!answer?.id) return; // nothing to stop, or the conversation has ended
  if (item) transcript.setSound(answer.id, transcript.soundOf(answer).slice(0, played), OUTPUT_RATE); // what was heard
  if (item && beganAt !== null) answer.turn.stopMilliseconds = performance.now() - beganAt;
  const milliseconds = item ? Math.floor((1000 * played) / OUTPUT_RATE) : 0;
  answer.turn.heardMilliseconds = milliseconds;
  send("conversation.item.truncate", { item_id: answer.id, content_index: 0, audio_end_ms: milliseconds });
}

// Stop the answer in progress.
export async function interrupt() {
  if (response) send("response.cancel");
  await stopSound();
  settle();
}

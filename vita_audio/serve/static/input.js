// The user's speech: the microphone, hands-free or while a button is held, and the turns that the server finds in it.
import { setLevel } from "./levels.js";
import { INPUT_RATE, toBase64 } from "./pcm.js";
import { SentSound } from "./sent.js";
import * as session from "./session.js";
import { MicrophoneError, openMicrophone, startPlayer } from "./sound.js";
import * as transcript from "./transcript.js";
import { $, showError, showState, text } from "./view.js";

const { on, pushToTalk } = session;
const MIN_SAMPLES = 0.2 * INPUT_RATE; // a shorter press of push-to-talk was a mistake
const SAMPLES_PER_MS = INPUT_RATE / 1000;
const sent = new SentSound(INPUT_RATE);

let microphone = null; // a promise of the function that closes it
let isSending = false; // whether the microphone's sound goes to the server
let isHeld = false; // the button or key of push-to-talk
let turn = null; // {id, start} of a turn that the server has found; `start` is a place in `sent`
let pressedAt = 0; // the place in `sent` where push-to-talk began
let committing = []; // [start, end] of turns that the server has not confirmed yet
let prefix = 0; // ms that the server keeps before the speech of a turn

// server

Object.assign(on, {
  "session.updated"({ session: { audio } }) {
    prefix = audio.input.turn_detection?.prefix_padding_ms ?? 0;
  },
  "input_audio_buffer.speech_started"({ item_id, audio_start_ms }) {
    turn = { id: item_id, start: audio_start_ms * SAMPLES_PER_MS };
    session.stopSound(sent.timeOf((audio_start_ms + prefix) * SAMPLES_PER_MS)); // the server stops the answer
    session.setIdle("hearing");
    showState("hearing");
    showTurn(item_id, turn.start);
  },
  "input_audio_buffer.speech_stopped"({ item_id, audio_end_ms }) {
    session.endTurn();
    if (turn) showTurn(item_id, turn.start, audio_end_ms * SAMPLES_PER_MS);
    turn = null;
    session.setIdle(idleState());
    showState("thinking");
  },
  "input_audio_buffer.committed"({ item_id }) {
    if (committing.length) showTurn(item_id, ...committing.shift());
  },
  "input_audio_buffer.cleared"() {
    if (turn) transcript.remove(turn.id);
    turn = null;
    if (!pushToTalk()) session.setIdle(idleState());
  },
  "conversation.item.input_audio_transcription.completed"({ item_id, transcript: words }) {
    transcript.setWords(item_id, "user", words || text("noSpeech"));
    transcript.announce(transcript.find(item_id));
  },
  "conversation.item.input_audio_transcription.failed"({ item_id }) {
    transcript.setWords(item_id, "user", text("notTranscribed"));
  },
});

function showTurn(id, start, end) {
  transcript.message(id, "user");
  transcript.setSound(id, sent.slice(start, end), INPUT_RATE);
}

document.addEventListener("disconnected", () => {
  if (turn) transcript.remove(turn.id);
  turn = null;
  committing = [];
  sent.reset();
  if (pushToTalk()) setSending(false);
});

// microphone

const idleState = () => (isSending && !pushToTalk() ? "listening" : "ready");

function take({ pcm, level }) {
  setLevel(0, isSending ? level : 0);
  if (!isSending || !session.isReady()) return;
  session.send("input_audio_buffer.append", { audio: toBase64(pcm) });
  sent.add(pcm);
  if (turn) transcript.addSound(turn.id, pcm, INPUT_RATE);
}

async function open() {
  showError("");
  try {
    await startPlayer(session.playerEvent);
    await (microphone ??= openMicrophone(take, lose));
    return true;
  } catch (error) {
    microphone = null;
    showError(error instanceof MicrophoneError ? text(error.key) : error.message);
    return false;
  }
}

function close() {
  microphone?.then((end) => end());
  microphone = null;
}

function lose() {
  release();
  close();
  showError(text("noMicrophone"));
}

function setSending(value) {
  isSending = value;
  if (!value) setLevel(0, 0);
  session.setIdle(idleState());
  showMicrophone();
}

function showMicrophone() {
  const key = pushToTalk() ? (isSending ? "release" : "hold") : isSending ? "stop" : "start";
  $("microphone-text").textContent = text(key);
  $("microphone").setAttribute("aria-pressed", isSending);
}

async function press() {
  isHeld = true;
  if (!session.isReady()) return showError(text("notConnected"));
  if (!(await open())) return;
  if (pushToTalk() && !isHeld) return; // it was released while the browser asked for permission
  if (pushToTalk()) await session.interrupt(); // hands-free, speech does
  if (pushToTalk() && !isHeld) return; // it was released meanwhile
  session.send("input_audio_buffer.clear");
  pressedAt = sent.length;
  setSending(true);
  if (pushToTalk()) session.setIdle("hearing");
}

function release() {
  isHeld = false;
  if (!isSending) return;
  setSending(false);
  if (pushToTalk() && sent.length - pressedAt >= MIN_SAMPLES) {
    session.endTurn();
    committing.push([pressedAt, sent.length]);
    session.send("input_audio_buffer.commit");
    session.send("response.create");
    return;
  }
  if (!pushToTalk()) close();
  session.send("input_audio_buffer.clear");
}

// controls

const button = $("microphone");
button.addEventListener("click", () => pushToTalk() || (isSending ? release() : press()));
button.addEventListener("pointerdown", () => pushToTalk() && press());
for (const kind of ["pointerup", "pointercancel", "pointerleave", "blur"]) {
  button.addEventListener(kind, () => pushToTalk() && release());
}
const isHoldKey = (event) => pushToTalk() && [" ", "Enter"].includes(event.key);
button.addEventListener("keydown", (event) => isHoldKey(event) && (event.preventDefault(), event.repeat || press()));
button.addEventListener("keyup", (event) => isHoldKey(event) && release());

for (const input of document.querySelectorAll("[name=mode]")) {
  input.addEventListener("change", () => {
    close();
    setSending(false);
    on["input_audio_buffer.cleared"]();
    sent.reset(); // the server counts from the beginning of hands-free talk
    session.configure();
  });
}
document.addEventListener("recording", () => isSending && release());
document.addEventListener("language", showMicrophone);
showMicrophone();

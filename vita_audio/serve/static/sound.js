// Sound in and out: microphones, and the player with its jitter buffer.
import { OUTPUT_RATE } from "./pcm.js";

let player = null;
let loading = null; // a promise of it
const clearing = []; // what waits for the player to be empty

// Start the player, after a click; `onEvent` gets its messages.
export async function startPlayer(onEvent) {
  await (loading ??= loadPlayer(onEvent));
  await player.context.resume();
}

async function loadPlayer(onEvent) {
  const context = new AudioContext({ sampleRate: OUTPUT_RATE });
  await context.audioWorklet.addModule("/static/player.js");
  player = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
  player.port.onmessage = ({ data }) => (data.state === "cleared" ? clearing.shift()(data) : onEvent(data));
  player.connect(context.destination);
}

export const play = (item, samples) => player?.port.postMessage({ item, samples });
export const endSound = (item) => player?.port.postMessage({ item, end: true });

// Empty the player at once. Returns a promise of what it had: the item, or null, and how many samples were heard.
export function clearSound() {
  if (!player) return Promise.resolve({ item: null });
  return new Promise((resolve) => {
    clearing.push(resolve);
    player.port.postMessage({ clear: true });
  });
}

// Browsers suppress noise and control the gain for people's ears, each browser in its own way, and change words for a
// recogniser; models are trained with noise and at levels from 0.05 to 1. Without the cancellation of its echo, the model
// would hear its own answer as an interruption.
const PROCESSING = { echoCancellation: true, noiseSuppression: false, autoGainControl: false };

// Open the microphone; `onPiece` gets pieces of PCM with their level, `onLost` is called when it is unplugged or its
// permission is taken back. Returns a function that closes it. Throws a MicrophoneError if there is none to use.
export async function openMicrophone(onPiece, onLost) {
  const audio = { channelCount: 1, ...PROCESSING };
  if (!navigator.mediaDevices) throw new MicrophoneError("InsecureContext");
  const stream = await navigator.mediaDevices.getUserMedia({ audio }).catch((error) => {
    throw new MicrophoneError(error.name);
  });
  const context = new AudioContext();
  await context.audioWorklet.addModule("/static/microphone.js");
  const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
  context.createMediaStreamSource(stream).connect(node);
  node.port.onmessage = ({ data }) => onPiece(data);
  stream.getAudioTracks()[0].onended = onLost;
  await context.resume();
  const close = () => {
    node.port.onmessage = null;
    stream.getTracks().forEach((track) => track.stop());
    context.close();
  };
  if (stream.getAudioTracks()[0].readyState === "ended") {
    close();
    throw new MicrophoneError("ended");
  }
  return close;
}

// `key` names the text that says what to do.
export class MicrophoneError extends Error {
  constructor(name) {
    super(name);
    const keys = { NotAllowedError: "refused", NotFoundError: "noMicrophone", InsecureContext: "insecure" };
    this.key = keys[name] ?? "busy";
  }
}

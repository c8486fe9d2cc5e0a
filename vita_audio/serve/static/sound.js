// Sound in and out: the microphone, and the player with its jitter buffer.
import { INPUT_RATE, OUTPUT_RATE } from "./wire.js";

let microphone = null; // context and stream, once it was allowed
let player = null;
const clearing = []; // what waits for the player to be empty

// Start the player, after a click; `onEvent` gets its messages.
export async function startPlayer(onEvent) {
  if (!player) {
    const context = new AudioContext({ sampleRate: OUTPUT_RATE });
    await context.audioWorklet.addModule("/static/player.js");
    player = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    player.port.onmessage = ({ data }) => (data.state === "cleared" ? clearing.shift()(data) : onEvent(data));
    player.connect(context.destination);
  }
  await player.context.resume();
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

// Start the microphone; `onPiece` gets pieces of PCM with their level. Throws if it is refused.
export async function startMicrophone(onPiece) {
  if (!microphone) {
    const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    const context = new AudioContext({ sampleRate: INPUT_RATE });
    await context.audioWorklet.addModule("/static/microphone.js");
    const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
    context.createMediaStreamSource(stream).connect(node);
    node.port.onmessage = ({ data }) => onPiece(data);
    microphone = { context, stream };
  }
  await microphone.context.resume();
}

export function stopMicrophone() {
  microphone?.stream.getTracks().forEach((track) => track.stop());
  microphone?.context.close();
  microphone = null;
}

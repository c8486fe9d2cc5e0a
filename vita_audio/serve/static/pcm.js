// 16-bit PCM: to and from base64, floats, WAV files and whatever files the browser can decode.
export const OUTPUT_RATE = 24000;
export const INPUT_RATE = 16000;
const GENERATED = "AI-generated\0\0"; // the comment in WAV files, as the server writes it

export function toBase64(pcm) {
  const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

export const toBytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
export const fromBase64 = (base64) => new Int16Array(toBytes(base64).buffer);
export const toFloats = (pcm) => Float32Array.from(pcm, (value) => value / 32768);
const clip = (value) => Math.max(-1, Math.min(1, value));
export const toPcm = (samples) => Int16Array.from(samples, (value) => Math.round(clip(value) * 32767));

export function join(pieces) {
  const joined = new Int16Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let place = 0;
  for (const piece of pieces) {
    joined.set(piece, place);
    place += piece.length;
  }
  return joined;
}

// Write a mono WAV file; one of generated sound says so.
export function toWav(pcm, rate, isGenerated = false) {
  const info = isGenerated ? 20 + GENERATED.length : 0;
  const view = new DataView(new ArrayBuffer(44 + info + 2 * pcm.length));
  let place = 0;
  const word = (text) => [...text].forEach((character) => view.setUint8(place++, character.charCodeAt(0)));
  const long = (value) => view.setUint32((place += 4) - 4, value, true);
  const short = (value) => view.setUint16((place += 2) - 2, value, true);
  word("RIFF");
  long(view.byteLength - 8);
  word("WAVEfmt ");
  long(16);
  short(1); // PCM
  short(1); // channel
  long(rate);
  long(2 * rate);
  short(2);
  short(16);
  if (isGenerated) {
    word("LIST");
    long(12 + GENERATED.length);
    word("INFOICMT");
    long(GENERATED.length);
    word(GENERATED);
  }
  word("data");
  long(2 * pcm.length);
  pcm.forEach((value, i) => view.setInt16(place + 2 * i, value, true));
  return new Uint8Array(view.buffer);
}

// Decode an audio file at a rate; its channels are averaged. Throws if the browser cannot decode it.
export async function decodeFile(file, rate) {
  const decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  const mono = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((value, i) => (mono[i] += value / decoded.numberOfChannels));
  }
  return mono;
}

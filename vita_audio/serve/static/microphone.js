// AudioWorklet: the microphone as 16-bit PCM, in the pieces that the server's turn detection reads, with their level.
import { Resampler } from "./resampler.js";

const RATE = 16000; // Hz
const PIECE = 512; // samples

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.pcm = new Int16Array(PIECE);
    this.length = 0;
    this.power = 0;
  }

  process([input]) {
    for (const sample of this.resampler.push(input[0] ?? [])) {
      const value = Math.max(-1, Math.min(1, sample));
      this.pcm[this.length++] = Math.round(value * 32767);
      this.power += value * value;
      if (this.length === PIECE) {
        this.port.postMessage({ pcm: this.pcm, level: Math.sqrt(this.power / PIECE) });
        this.pcm = new Int16Array(PIECE);
        this.length = this.power = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);

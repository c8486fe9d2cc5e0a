// AudioWorklet: a jitter buffer. Sound starts once some of it is there, or all of it; `clear` empties it at once.
const START_SECONDS = 0.1;
const LEVEL_SAMPLES = 768; // between two reports of the level

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.reset(null);
    this.power = this.numMeasured = 0;
    this.port.onmessage = ({ data }) => this.receive(data);
  }

  reset(item) {
    Object.assign(this, { item, pieces: [], offset: 0, waiting: 0, played: 0, runs: false, ended: false });
  }

  receive({ item, samples, end, clear }) {
    if (clear) {
      this.tell("cleared");
      this.reset(null);
      return;
    }
    if (item !== this.item) this.reset(item);
    if (samples) {
      this.pieces.push(samples);
      this.waiting += samples.length;
    }
    this.ended ||= Boolean(end);
  }

  tell(state) {
    this.port.postMessage({ state, item: this.item, played: this.played });
  }

  process(inputs, [[output]]) {
    if (!this.runs && this.waiting && (this.ended || this.waiting >= START_SECONDS * sampleRate)) {
      this.runs = true;
      if (!this.played) this.tell("started");
    }
    if (this.runs) this.fill(output);
    if (!this.waiting && this.runs) {
      this.runs = false; // more of it may still arrive
      this.port.postMessage({ level: 0 });
    }
    if (!this.waiting && this.ended) {
      this.tell("ended");
      this.reset(null);
    }
    return true;
  }

  fill(output) {
    for (let i = 0; i < output.length && this.waiting; i++) {
      output[i] = this.pieces[0][this.offset++];
      this.power += output[i] * output[i];
      this.played++;
      this.waiting--;
      if (this.offset === this.pieces[0].length) {
        this.pieces.shift();
        this.offset = 0;
      }
    }
    this.numMeasured += output.length;
    if (this.numMeasured < LEVEL_SAMPLES) return;
    this.port.postMessage({ level: Math.sqrt(this.power / this.numMeasured) });
    this.power = this.numMeasured = 0;
  }
}

registerProcessor("player", Player);

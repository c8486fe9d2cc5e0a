// The last sound that was sent, by its place in the stream: the sound of the user's turns, and when it was said.
const KEPT_SECONDS = 60;

export class SentSound {
  constructor(rate) {
    this.rate = rate;
    this.reset();
  }

  reset() {
    Object.assign(this, { pieces: [], length: 0 }); // a piece is {start, pcm, time}; `time` is that of its end, in ms
  }

  add(pcm) {
    this.pieces.push({ start: this.length, pcm, time: performance.now() });
    this.length += pcm.length;
    while (this.pieces[0].start < this.length - KEPT_SECONDS * this.rate) this.pieces.shift();
  }

  slice(start, end = this.length) {
    const found = new Int16Array(Math.max(0, end - start));
    for (const piece of this.pieces) {
      const part = piece.pcm.subarray(Math.max(0, start - piece.start), Math.max(0, end - piece.start));
      if (part.length) found.set(part, Math.max(0, piece.start - start));
    }
    return found;
  }

  // Return the time at which a sample was heard by the microphone.
  timeOf(sample) {
    const piece = this.pieces.find(({ start, pcm }) => sample < start + pcm.length);
    return piece ? piece.time - (1000 * (piece.start + piece.pcm.length - sample)) / this.rate : performance.now();
  }
}

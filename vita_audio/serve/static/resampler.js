// Resampling of a stream by a windowed sinc, since not all browsers give a microphone's sound at the rate asked for.
const ZERO_CROSSINGS = 16; // of the filter, on each side
const PASSED = 0.92; // of the band below half the lower rate

const divisor = (a, b) => (b ? divisor(b, a % b) : a);
const sinc = (x) => (x ? Math.sin(Math.PI * x) / (Math.PI * x) : 1);

export class Resampler {
  constructor(from, to) {
    const common = divisor(from, to);
    Object.assign(this, { up: to / common, down: from / common });
    const band = PASSED * Math.min(1, to / from);
    this.half = Math.ceil(ZERO_CROSSINGS / band);
    this.filters = Array.from({ length: this.up }, (_, phase) => this.makeFilter(phase / this.up, band));
    this.kept = new Float32Array(this.half - 1); // as if silence preceded
    this.phase = 0;
  }

  makeFilter(fraction, band) {
    return Float32Array.from({ length: 2 * this.half }, (_, i) => {
      const distance = i + 1 - this.half - fraction;
      return band * sinc(band * distance) * Math.cos((Math.PI * distance) / (2 * this.half)) ** 2;
    });
  }

  // Read the next samples, and return the finished ones; they are late by the filter's half.
  push(samples) {
    const input = new Float32Array(this.kept.length + samples.length);
    input.set(this.kept);
    input.set(samples, this.kept.length);
    const output = [];
    let place = 0;
    for (; place + 2 * this.half <= input.length; place += Math.floor(this.phase / this.up), this.phase %= this.up) {
      const filter = this.filters[this.phase];
      let sum = 0;
      for (let i = 0; i < filter.length; i++) sum += filter[i] * input[place + i];
      output.push(sum);
      this.phase += this.down;
    }
    this.kept = input.slice(place);
    return output;
  }
}

// The waveform of a sound that may still grow: a bar for the loudest sample of every 50 ms.
const SVG = "http://www.w3.org/2000/svg";
const BAR_SECONDS = 0.05;
const MIN_BARS = 60; // the width, while the sound is shorter

export class Wave {
  constructor(rate) {
    this.samplesPerBar = BAR_SECONDS * rate;
    this.element = document.createElementNS(SVG, "svg");
    this.element.setAttribute("class", "wave");
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.element.append(document.createElementNS(SVG, "path"));
    this.clear();
  }

  clear() {
    Object.assign(this, { bars: "", numBars: 0, loudest: 0, numSamples: 0 });
    this.draw();
  }

  add(pcm) {
    const before = this.numBars;
    for (const sample of pcm) {
      this.loudest = Math.max(this.loudest, Math.abs(sample) / 32768);
      if (++this.numSamples < this.samplesPerBar) continue;
      const height = Math.max(0.03, Math.sqrt(this.loudest)); // so that quiet speech is visible
      this.bars += `M${this.numBars++ + 0.5} ${-height}v${2 * height}`;
      this.loudest = this.numSamples = 0;
    }
    if (this.numBars > before) this.draw();
  }

  draw() {
    this.element.setAttribute("viewBox", `0 -1 ${Math.max(MIN_BARS, this.numBars)} 2`);
    this.element.firstChild.setAttribute("d", this.bars);
  }
}

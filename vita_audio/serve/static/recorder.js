// A sound that the user gives: a file, or a recording made here. It is shown by a player and a waveform.
import { decodeFile, INPUT_RATE, join, toPcm, toWav } from "./pcm.js";
import { MicrophoneError, openMicrophone } from "./sound.js";
import { element, label, setSource, showError, text } from "./view.js";
import { Wave } from "./wave.js";

export class Recorder {
  // Builds its controls inside `place`; calls `onChange` with PCM at INPUT_RATE, at most `maxSeconds` of it, or null.
  constructor(place, maxSeconds, onChange) {
    Object.assign(this, { onChange, maxSamples: maxSeconds * INPUT_RATE, pieces: [], close: null });
    this.record = label("record", "button", "record");
    this.remove = label("remove", "button", "plain");
    this.file = Object.assign(element("input", "hidden"), { type: "file", accept: "audio/*" });
    this.audio = Object.assign(element("audio", ""), { controls: true, hidden: true });
    this.record.type = this.remove.type = "button";
    const choose = element("label", "button");
    choose.append(this.file, label("chooseFile"));
    const row = element("div", "row");
    row.append(this.record, choose, this.remove);
    this.wave = new Wave(INPUT_RATE);
    place.append(row, this.wave.element, this.audio);
    this.record.addEventListener("click", () => (this.close ? this.finish() : this.start()));
    this.remove.addEventListener("click", () => this.clear());
    this.file.addEventListener("change", () => this.file.files[0] && this.read(this.file.files[0]));
    this.show(null);
  }

  async start() {
    showError("");
    this.clear();
    this.record.disabled = true;
    document.dispatchEvent(new Event("recording")); // what is recorded is not said to the model
    try {
      this.close = await openMicrophone(({ pcm }) => this.take(pcm), () => this.close && this.finish());
      this.setRecording(true);
    } catch (error) {
      showError(error instanceof MicrophoneError ? text(error.key) : error.message);
    }
    this.record.disabled = false;
  }

  take(pcm) {
    this.pieces.push(pcm);
    this.wave.add(pcm);
    if (this.pieces.length * pcm.length >= this.maxSamples) this.finish();
  }

  finish() {
    this.close();
    this.close = null;
    this.setRecording(false);
    this.set(join(this.pieces));
  }

  async read(file) {
    showError("");
    try {
      this.set(toPcm(await decodeFile(file, INPUT_RATE)));
    } catch {
      showError(`${text("notAudio")}: ${file.name}`);
    }
    this.file.value = ""; // so that the same file can be chosen again
  }

  clear() {
    this.pieces = [];
    this.show(null);
    this.onChange(null);
  }

  set(pcm) {
    const kept = pcm.slice(0, this.maxSamples);
    this.show(kept);
    this.onChange(kept);
  }

  show(pcm) {
    this.wave.clear();
    this.wave.add(pcm ?? []);
    setSource(this.audio, pcm && toWav(pcm, INPUT_RATE));
    this.remove.hidden = !pcm;
  }

  setRecording(isRecording) {
    this.record.dataset.text = isRecording ? "finish" : "record";
    this.record.textContent = text(this.record.dataset.text);
    this.record.setAttribute("aria-pressed", isRecording);
  }
}

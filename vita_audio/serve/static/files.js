// The tab for files: recognition, synthesis, and a question in a file.
import { paintMel } from "./mel.js";
import { fromBase64, INPUT_RATE, OUTPUT_RATE, toBase64, toFloats, toWav } from "./pcm.js";
import { Recorder } from "./recorder.js";
import { $, setSource, showError, text } from "./view.js";
import { explain, get, model as chosen, post } from "./wire.js";

const MAX_SECONDS = 30;
let sound = null; // PCM of the input

const task = () => document.querySelector("[name=task]:checked").value;
for (const input of document.querySelectorAll("[name=task]")) {
  input.addEventListener("change", () => {
    $("words-row").hidden = task() !== "synthesis";
    $("file-row").hidden = task() === "synthesis";
  });
}

new Recorder($("file-sound"), MAX_SECONDS, (pcm) => {
  sound = pcm;
  showMel("file-mel", pcm && toFloats(pcm), INPUT_RATE);
});

function showMel(id, samples, rate) {
  $(id).hidden = !samples;
  if (!samples) return;
  paintMel($(id).querySelector("canvas"), samples, rate);
  $(id).querySelector(".seconds").textContent = `${(samples.length / rate).toFixed(1)} s`;
  $(id).querySelector(".hertz").textContent = `${rate / 2000} kHz`;
}

async function modelName() {
  return chosen ?? (await (await get("/v1/models")).json()).data[0].id;
}

const run = {
  async recognition(model, wav) {
    const form = new FormData();
    form.append("model", model);
    form.append("file", new Blob([wav]), "audio.wav");
    return { words: (await (await post("/v1/audio/transcriptions", form)).json()).text };
  },
  async question(model, wav) {
    const content = [{ type: "input_audio", input_audio: { data: toBase64(wav), format: "wav" } }];
    const fields = { modalities: ["text", "audio"], audio: { format: "pcm16", voice: "default" } };
    const body = { model, messages: [{ role: "user", content }], ...fields };
    const { audio } = (await (await post("/v1/chat/completions", body)).json()).choices[0].message;
    return { words: audio.transcript, answer: fromBase64(audio.data) };
  },
  async synthesis(model) {
    const body = { model, input: $("words").value, voice: "default", response_format: "pcm" };
    const response = await post("/v1/audio/speech", body);
    const answer = new Int16Array(await response.arrayBuffer().catch(explain("brokenOff")));
    return { words: $("words").value, answer };
  },
};

function showText(content) {
  delete $("result-text").dataset.text; // it no longer follows the language
  $("result-text").textContent = content;
}

function showResult({ words, answer }) {
  showText(words || text("noSpeech"));
  if (!answer?.length) return;
  setSource($("result-audio"), toWav(answer, OUTPUT_RATE, true));
  showMel("result-mel", toFloats(answer), OUTPUT_RATE);
}

$("file-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  showError("");
  setSource($("result-audio"), null);
  $("result-mel").hidden = true;
  if (task() !== "synthesis" && !sound) return showError(text("needSound"));
  if (task() === "synthesis" && !$("words").value.trim()) return showError(text("needText"));
  showText(`${text("working")} …`);
  $("run").disabled = true;
  try {
    showResult(await run[task()](await modelName(), sound && toWav(sound, INPUT_RATE)));
  } catch (error) {
    showText("");
    showError(error.message);
  }
  $("run").disabled = false;
});

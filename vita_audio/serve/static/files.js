// The tab for files: recognition, synthesis, and a question in a file.
import { fileToWav, get, post, toBase64, toBytes } from "./wire.js";
import { $, showError, text } from "./view.js";

const task = () => document.querySelector("[name=task]:checked").value;
for (const input of document.querySelectorAll("[name=task]")) {
  input.addEventListener("change", () => {
    $("words-row").hidden = task() !== "synthesis";
    $("file-row").hidden = task() === "synthesis";
  });
}

async function modelName() {
  return (await (await get("/v1/models")).json()).data[0].id;
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
    const fields = { modalities: ["text", "audio"], audio: { format: "wav", voice: "default" } };
    const body = { model, messages: [{ role: "user", content }], ...fields };
    const { audio } = (await (await post("/v1/chat/completions", body)).json()).choices[0].message;
    return { words: audio.transcript, sound: new Blob([toBytes(audio.data)], { type: "audio/wav" }) };
  },
  async synthesis(model) {
    const body = { model, input: $("words").value, voice: "default", response_format: "wav" };
    return { words: $("words").value, sound: await (await post("/v1/audio/speech", body)).blob() };
  },
};

$("file-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  showError("");
  $("result-audio").hidden = true;
  URL.revokeObjectURL($("result-audio").src);
  $("result-text").textContent = `${text("working")} …`;
  try {
    const file = $("file").files[0];
    if (task() !== "synthesis" && !file) throw new Error(text("chooseFile"));
    const { words, sound } = await run[task()](await modelName(), task() === "synthesis" ? null : await fileToWav(file));
    $("result-text").textContent = words || text("noSpeech");
    if (sound) {
      $("result-audio").src = URL.createObjectURL(sound);
      $("result-audio").hidden = false;
    }
  } catch (error) {
    $("result-text").textContent = "";
    showError(error.message);
  }
});

// The page: connects its controls to the session.
import { downloadConversation } from "./download.js";
import "./files.js";
import "./input.js";
import { ask, configure, interrupt, modelName, restart } from "./session.js";
import { $, element, showError, showTexts } from "./view.js";
import "./voice.js";
import { get, model } from "./wire.js";

for (const id of ["instructions", "plan", "acceptance"]) $(id).addEventListener("change", configure);

$("typed").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = $("text").value.trim();
  if (question && (await ask(question))) $("text").value = "";
});

$("stop").addEventListener("click", () => {
  $("text").focus(); // the button vanishes
  interrupt();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && interrupt());
$("restart").addEventListener("click", restart);
$("download").addEventListener("click", () => {
  const [plan, acceptance] = [$("plan").value || null, $("acceptance").value || null];
  downloadConversation({ model: modelName(), instructions: $("instructions").value, plan, acceptance });
});

// What the model can talk about, questions to click, and whether it knows system prompts.
async function showDemo() {
  const query = model ? `?model=${encodeURIComponent(model)}` : "";
  const { domain, questions, system_prompt } = await (await get(`/demo${query}`)).json();
  $("domain").textContent = domain;
  $("instructions").parentElement.hidden = !system_prompt;
  for (const question of questions) {
    const example = element("button", "", question);
    example.addEventListener("click", () => ask(question));
    $("examples").append(example);
  }
}

$("settings").open = !matchMedia("(max-width: 48rem)").matches;
showTexts();
showDemo().catch((error) => showError(error.message));

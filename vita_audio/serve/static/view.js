// What the page shows: texts in the chosen language, state, messages and their times.
import { STRINGS } from "./strings.js";

export const $ = (id) => document.getElementById(id);
export const turns = []; // what the download holds
export const messages = new Map(); // id of an item -> its box, words and turn
const PARTS = { vad: "vad", encoder: "encoder", model: "language", decoder: "decoder", rest: "rest" }; // name, text
const SVG = "http://www.w3.org/2000/svg";
const SAMPLES_PER_BAR = 1200; // 50 ms at the rate of the player
const MIN_BARS = 60; // the width of a waveform, while the answer is shorter
let language = localStorage.language ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const text = (key) => STRINGS[language][key];

export function showState(state, detail = "") {
  $("status").dataset.state = state;
  $("status").textContent = detail || text(state);
}

export function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

export function showTexts() {
  document.documentElement.lang = language;
  $("language").value = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
    if ("placeholder" in element) element.placeholder = text(element.dataset.label);
    else element.title = text(element.dataset.label);
  }
  showState($("status").dataset.state);
}

export function element(kind, className, content = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = content;
  return made;
}

// A text that follows the language.
export function label(key, kind = "span") {
  const made = element(kind, "", text(key));
  made.dataset.text = key;
  return made;
}

export function message(id, role) {
  if (messages.has(id)) return messages.get(id);
  $("welcome").hidden = true;
  const box = element("div", `message ${role}`);
  const who = label(role === "user" ? "you" : "model");
  who.className = "who";
  const words = element("span", "words", role === "user" ? "…" : "");
  box.append(who, words);
  $("log").append(box);
  const made = { box, words, turn: { role, text: "" } };
  turns.push(made.turn);
  messages.set(id, made);
  scroll();
  return made;
}

const scroll = () => ($("log").scrollTop = $("log").scrollHeight);

export function setWords(id, role, content) {
  const { words, turn } = message(id, role);
  turn.text = content;
  words.textContent = content.trim();
  scroll();
}

// Add sound to the waveform of an answer: a bar for the loudest sample of every 50 ms.
export function showSound(item, samples) {
  const made = messages.get(item);
  if (!made.wave) {
    made.wave = document.createElementNS(SVG, "svg");
    made.wave.setAttribute("class", "wave");
    made.wave.setAttribute("preserveAspectRatio", "none");
    made.wave.setAttribute("aria-hidden", "true");
    made.wave.append(document.createElementNS(SVG, "path"));
    Object.assign(made, { bars: "", numBars: 0, loudest: 0, numSamples: 0 });
    made.words.after(made.wave);
  }
  for (const sample of samples) {
    made.loudest = Math.max(made.loudest, Math.abs(sample));
    if (++made.numSamples < SAMPLES_PER_BAR) continue;
    const height = Math.max(0.02, made.loudest);
    made.bars += `M${made.numBars++ + 0.5} ${-height}v${2 * height}`;
    made.loudest = made.numSamples = 0;
  }
  made.wave.setAttribute("viewBox", `0 -1 ${Math.max(MIN_BARS, made.numBars)} 2`);
  made.wave.firstChild.setAttribute("d", made.bars);
}

// Show how many tokens a pass of the backbone made, and how many predictions of the modules it accepted.
export function showDecoding(item, { tokens_per_pass, verified, accepted }) {
  if (!tokens_per_pass) return;
  const line = element("div", "decoding", `${tokens_per_pass} `);
  line.append(label("tokensPerPass"));
  if (verified) line.append(" · ", label("accepted"), ` ${accepted} / ${verified}`);
  messages.get(item).box.append(line);
}

export function showTimes(item, milliseconds) {
  const { box, turn } = messages.get(item);
  turn.milliseconds = milliseconds;
  const total = Object.values(milliseconds).reduce((sum, value) => sum + value, 0);
  const seconds = (value) => (value / 1000).toFixed(2);
  const bar = element("div", "bar");
  const legend = element("div", "legend");
  for (const [name, key] of Object.entries(PARTS)) {
    const part = element("div", `part-${name}`);
    part.style.width = `${(100 * milliseconds[name]) / total}%`;
    bar.append(part);
    const entry = element("span", "");
    entry.append(element("i", `part-${name}`), label(key), ` ${seconds(milliseconds[name])}`);
    legend.append(entry);
  }
  bar.setAttribute("aria-hidden", "true");
  const times = element("div", "times", `${seconds(total)} s `);
  times.append(label("firstSound"), bar, legend);
  box.append(times);
  scroll();
}

export function clearConversation() {
  for (const box of document.querySelectorAll("#log > .message")) box.remove();
  messages.clear();
  turns.length = 0;
  $("welcome").hidden = false;
}

// The server forgets a conversation when the connection ends.
export function closeConversation() {
  const line = label("newConversation", "div");
  line.className = "message separator";
  $("log").append(line);
  for (const [id, value] of [...messages]) {
    messages.delete(id);
    messages.set(`past-${id}`, value);
  }
}

// header

$("language").addEventListener("change", () => {
  language = localStorage.language = $("language").value;
  showTexts();
  document.dispatchEvent(new Event("language"));
});
$("theme").addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = localStorage.theme = isDark === "dark" ? "light" : "dark";
});
if (localStorage.theme) document.documentElement.dataset.theme = localStorage.theme;

const tabs = [$("tab-talk"), $("tab-files")];
for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => {
    for (const one of tabs) {
      one.setAttribute("aria-selected", one === tab);
      one.tabIndex = one === tab ? 0 : -1;
      $(one.getAttribute("aria-controls")).hidden = one !== tab;
    }
    tab.focus();
  });
  tab.addEventListener("keydown", (event) => ["ArrowLeft", "ArrowRight"].includes(event.key) && tabs[1 - i].click());
}

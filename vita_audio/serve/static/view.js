// What surrounds the conversation: texts in the chosen language, state, errors, colours and tabs.
import { STRINGS } from "./strings.js";

export const $ = (id) => document.getElementById(id);
let language = localStorage.language ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const text = (key) => STRINGS[language][key];

// What to tell the user about an error of the server.
export const errorText = ({ code, message }) => text(code) ?? message;

export function showState(state, detail = "") {
  document.body.dataset.state = $("status").dataset.state = state;
  $("status").textContent = detail || text(state);
}

export function showError(message) {
  $("error-text").textContent = message;
  $("error").hidden = !message;
}

export function showTexts() {
  document.documentElement.lang = language;
  $("language").value = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
    if ("placeholder" in element) element.placeholder = text(element.dataset.label);
    else if (element.matches("button")) element.title = text(element.dataset.label);
  }
  showState($("status").dataset.state ?? "connecting");
}

export function element(kind, className, content = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = content;
  return made;
}

// A text that follows the language.
export function label(key, kind = "span", className = "") {
  const made = element(kind, className, text(key));
  made.dataset.text = key;
  return made;
}

// Offer bytes or a Blob as a file.
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

// Let an audio element play some bytes in place of those before.
export function setSource(audio, bytes) {
  URL.revokeObjectURL(audio.src);
  if (bytes) audio.src = URL.createObjectURL(new Blob([bytes], { type: "audio/wav" }));
  else audio.removeAttribute("src");
  audio.hidden = !bytes;
}

$("language").addEventListener("change", () => {
  language = localStorage.language = $("language").value;
  showTexts();
  document.dispatchEvent(new Event("language"));
});
$("theme").addEventListener("click", () => {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (document.documentElement.dataset.theme ?? isDark) === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = localStorage.theme = next;
});
if (localStorage.theme) document.documentElement.dataset.theme = localStorage.theme;
$("error-close").addEventListener("click", () => showError(""));

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

// The messages of the conversation: words, sound, times and decoding of each.
import { join } from "./pcm.js";
import { $, element, label, text } from "./view.js";
import { Wave } from "./wave.js";

// In order; a message has its id, box, words and wave on the page, the pieces of its sound with their rate, and a turn,
// which the download holds.
export const messages = [];
const PARTS = { vad: "vad", wait: "wait", encoder: "encoder", model: "language", decoder: "decoder", rest: "rest" };
const seconds = (milliseconds) => (milliseconds / 1000).toFixed(2);

export const find = (id) => id && messages.find((message) => message.id === id);
const scroll = () => ($("log").scrollTop = $("log").scrollHeight);

// Return the message of an item, which is made if there is none.
export function message(id, role) {
  if (find(id)) return find(id);
  $("talk").classList.add("begun");
  const box = element("div", `message ${role}`);
  const words = element("p", "words", role === "user" ? "…" : "");
  box.append(label(role === "user" ? "you" : "model", "span", "who"), words);
  $("log").append(box);
  const made = { id, box, words, wave: null, pieces: [], rate: 0, turn: { role, text: "" } };
  messages.push(made);
  scroll();
  return made;
}

export function setWords(id, role, content) {
  const { words, turn } = message(id, role);
  turn.text = content;
  words.textContent = content.trim();
  scroll();
}

// Tell screen readers a message once it is complete; they would repeat it with every piece.
export function announce({ turn }) {
  if (turn.text) $("announcer").textContent = `${text(turn.role === "user" ? "you" : "model")}: ${turn.text.trim()}`;
}

export function addSound(id, pcm, rate) {
  const made = find(id);
  if (!made.wave) {
    Object.assign(made, { wave: new Wave(rate), rate });
    made.words.after(made.wave.element);
    scroll();
  }
  made.pieces.push(pcm);
  made.wave.add(pcm);
}

// Replace the sound so far.
export function setSound(id, pcm, rate) {
  const made = find(id);
  made.pieces = [];
  made.wave?.clear();
  addSound(id, pcm, rate);
}

export const soundOf = ({ pieces }) => join(pieces);

// Note how an answer has ended.
export function complete({ box, turn }, { status, usage, metadata }) {
  box.dataset.status = status;
  Object.assign(turn, { status, usage, server: metadata });
}

// Keep of an interrupted answer what was heard; the rest of its words is shown as such.
export function setHeard(id, transcript) {
  const { words, turn } = find(id);
  turn.unheard = turn.text.startsWith(transcript) ? turn.text.slice(transcript.length) : "";
  turn.text = transcript;
  words.textContent = transcript.trimStart();
  if (turn.unheard.trim()) words.append(element("s", "", turn.unheard));
}

export function showInterruption(id) {
  const { box, turn } = find(id);
  const line = element("p", "note");
  line.append(label("interrupted"));
  if (turn.stopMilliseconds) line.append(` ${seconds(turn.stopMilliseconds)} s `, label("afterYouBegan"));
  box.append(line);
  scroll();
}

// The line of an answer's numbers.
function factsOf(made) {
  made.facts ??= made.box.appendChild(element("p", "facts"));
  return made.facts;
}

// Show how many tokens a pass of the backbone made, and how many predictions of the modules it accepted.
export function showDecoding(id, { tokens_per_pass, verified, accepted }) {
  if (!tokens_per_pass) return;
  const numbers = element("span", "decoding", `${tokens_per_pass} `);
  numbers.append(label("tokensPerPass"));
  if (verified) numbers.append(" · ", label("accepted"), ` ${accepted} / ${verified}`);
  factsOf(find(id)).append(numbers);
  scroll();
}

// Show the time from the end of speech to the first sound, with its parts.
export function showTimes(id, milliseconds) {
  const made = find(id);
  made.turn.milliseconds = milliseconds;
  const total = Object.values(milliseconds).reduce((sum, value) => sum + value, 0);
  const bar = element("div", "bar");
  const legend = element("div", "legend");
  for (const [name, key] of Object.entries(PARTS)) {
    if (!milliseconds[name]) continue;
    const part = element("div", `part-${name}`);
    part.style.flexGrow = milliseconds[name];
    bar.append(part);
    const entry = element("span", "");
    entry.append(element("i", `part-${name}`), label(key), ` ${seconds(milliseconds[name])}`);
    legend.append(entry);
  }
  bar.setAttribute("aria-hidden", "true");
  const first = element("span", "first-sound");
  first.append(element("strong", "", `${seconds(total)} s `), label("firstSound"));
  factsOf(made).prepend(first);
  made.facts.after(bar, legend);
  scroll();
}

export function remove(id) {
  const made = find(id);
  if (!made) return;
  made.box.remove();
  messages.splice(messages.indexOf(made), 1);
  $("talk").classList.toggle("begun", messages.length > 0);
}

export function clearConversation() {
  for (const box of document.querySelectorAll("#log > .message, #log > .separator")) box.remove();
  messages.length = 0;
  $("talk").classList.remove("begun");
}

// The server forgets a conversation when the connection ends: later items do not belong to these messages.
export function closeConversation() {
  for (const made of messages) {
    if (made.turn.role === "user" && !made.turn.text) made.words.textContent = text("notTranscribed");
    made.id = null;
  }
  if ($("log").lastElementChild?.matches(".message")) $("log").append(label("newConversation", "p", "separator"));
}

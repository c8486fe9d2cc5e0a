// The conversation as one file: what was said and measured as JSON, and the sound of each turn.
import { toWav } from "./pcm.js";
import { messages, soundOf } from "./transcript.js";
import { save } from "./view.js";
import { zip } from "./zip.js";

export function downloadConversation(settings) {
  const files = [];
  const turns = messages.map((message, i) => {
    const pcm = soundOf(message);
    if (!pcm.length) return message.turn;
    const name = `${String(i + 1).padStart(3, "0")}-${message.turn.role}.wav`;
    files.push([name, toWav(pcm, message.rate, message.turn.role === "assistant")]);
    return { ...message.turn, audio: name };
  });
  const words = JSON.stringify({ ...settings, generatedBy: "AI", turns }, null, 2);
  save("conversation.zip", zip([["conversation.json", new TextEncoder().encode(words)], ...files]));
}

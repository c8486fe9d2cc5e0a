// The levels of both sides, live: bars that move from right to left, or two bars that stay if motion is unwelcome.
import { $ } from "./view.js";

const TICK = 80; // ms; the page shares the processor with the model
const BAR = 6; // pixels from one bar to the next
const FLOOR = -60; // dB of full scale that leave a bar empty, about the noise of a quiet room
const FULL = -12; // dB that fill it; microphones without gain control are often 30 below
const latest = [0, 0]; // of the user and the model
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let bars = []; // pairs of levels, the newest last
let timer = null;

const size = (level) => Math.max(0, Math.min(1, (20 * Math.log10(level) - FLOOR) / (FULL - FLOOR)));

// Take the level of a side, the user's (0) or the model's (1).
export function setLevel(side, level) {
  latest[side] = level;
  timer ??= setInterval(tick, TICK);
}

function tick() {
  const canvas = $("levels");
  const { clientWidth: width, clientHeight: height } = canvas;
  bars = [...bars, [...latest]].slice(-Math.ceil(width / BAR));
  Object.assign(canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  const { color, caretColor } = getComputedStyle(canvas); // of the user and the model
  (calm.matches ? paintStill : paintMoving)(context, [color, caretColor], width, height);
  if (bars.some(([you, model]) => you || model)) return;
  clearInterval(timer);
  timer = null;
}

function paintStill(context, colours, width, height) {
  latest.forEach((level, side) => {
    context.fillStyle = colours[side];
    context.fillRect(0, (side * height) / 2 + 2, size(level) * width, height / 2 - 4);
  });
}

function paintMoving(context, colours, width, height) {
  bars.forEach((levels, i) => {
    const side = levels[0] > levels[1] ? 0 : 1;
    const tall = Math.max(2, size(levels[side]) * height);
    context.fillStyle = colours[side];
    context.fillRect(width - BAR * (bars.length - i), (height - tall) / 2, BAR - 2, tall);
  });
}

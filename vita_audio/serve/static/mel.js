// Mel spectrograms: log-power in mel bands, painted on a canvas.
export const SIZE = 1024; // samples of a frame
export const HOP = 256;
export const BANDS = 80;
const FLOOR = 80; // dB below the loudest value
const COLOURS = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

const WINDOW = Float64Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
const COSINES = Float64Array.from({ length: SIZE / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / SIZE));
const SINES = Float64Array.from({ length: SIZE / 2 }, (_, i) => Math.sin((2 * Math.PI * i) / SIZE));
const REVERSED = Uint16Array.from({ length: SIZE }, (_, i) => {
  let reversed = 0;
  for (let bit = 1; bit < SIZE; bit <<= 1, i >>= 1) reversed = (reversed << 1) | (i & 1);
  return reversed;
});

// Return the power of SIZE real samples at the frequencies 0 to SIZE / 2, by a radix-2 FFT.
function powerSpectrum(samples) {
  const real = Float64Array.from(REVERSED, (i) => samples[i]);
  const imaginary = new Float64Array(SIZE);
  for (let half = 1; half < SIZE; half *= 2) {
    for (let start = 0; start < SIZE; start += 2 * half) {
      for (let i = 0; i < half; i++) {
        const even = start + i;
        const odd = even + half;
        const turn = (i * SIZE) / (2 * half);
        const turnedReal = real[odd] * COSINES[turn] + imaginary[odd] * SINES[turn];
        const turnedImaginary = imaginary[odd] * COSINES[turn] - real[odd] * SINES[turn];
        real[odd] = real[even] - turnedReal;
        imaginary[odd] = imaginary[even] - turnedImaginary;
        real[even] += turnedReal;
        imaginary[even] += turnedImaginary;
      }
    }
  }
  return Float64Array.from({ length: SIZE / 2 + 1 }, (_, i) => real[i] ** 2 + imaginary[i] ** 2);
}

const toMel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const toHertz = (mel) => 700 * (10 ** (mel / 2595) - 1);

// Triangular filters of equal width in mel between 0 and half the rate; each is [first frequency, weights].
function melFilters(rate) {
  const step = toMel(rate / 2) / (BANDS + 1);
  const edges = Array.from({ length: BANDS + 2 }, (_, i) => (toHertz(step * i) * SIZE) / rate);
  return Array.from({ length: BANDS }, (_, band) => {
    const [low, peak, high] = edges.slice(band, band + 3);
    const first = Math.ceil(low);
    const weight = (_, i) => Math.min((first + i - low) / (peak - low), (high - first - i) / (high - peak));
    return [first, Array.from({ length: Math.max(0, Math.floor(high) - first + 1) }, weight)];
  });
}

// Return a frame of BANDS values in dB for every HOP samples.
export function melSpectrogram(samples, rate) {
  const filters = melFilters(rate);
  const frames = [];
  for (let start = 0; start + SIZE <= samples.length; start += HOP) {
    const power = powerSpectrum(WINDOW.map((weight, i) => weight * samples[start + i]));
    const sum = (first, weights) => weights.reduce((total, weight, i) => total + weight * power[first + i], 0);
    frames.push(filters.map(([first, weights]) => 10 * Math.log10(Math.max(1e-10, sum(first, weights)))));
  }
  return frames;
}

function colour(value) {
  const place = value * (COLOURS.length - 1);
  const below = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[below].map((channel, i) => channel + (place - below) * (COLOURS[below + 1][i] - channel));
}

// Paint the spectrogram of a sound, low frequencies at the bottom; a pixel is a frame of a band.
export function paintMel(canvas, samples, rate) {
  const frames = melSpectrogram(samples, rate);
  const loudest = frames.flat().reduce((most, value) => Math.max(most, value), -Infinity);
  Object.assign(canvas, { width: Math.max(1, frames.length), height: BANDS });
  const image = canvas.getContext("2d").createImageData(canvas.width, BANDS);
  frames.forEach((frame, x) => frame.forEach((value, band) => {
    const pixel = colour(Math.max(0, 1 + (value - loudest) / FLOOR));
    image.data.set([...pixel, 255], 4 * ((BANDS - 1 - band) * canvas.width + x));
  }));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

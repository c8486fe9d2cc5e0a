"""Speech as microphones record it: noise, room, level and silence, for training and for measurements.

Waves are (samples,) float32, full scale [-1, 1]. The same generator state gives the same result.
"""

import numpy as np

LONGEST_SILENCE = 2.0  # seconds, before and after speech in training
PAUSE_WINDOW = 0.05  # seconds; a pause is inserted where speech is weakest over this length


def with_silence(wave: np.ndarray, rate: int, before: float, after: float) -> np.ndarray:
    """Add digital silence, in seconds."""
    return np.pad(wave, (round(before * rate), round(after * rate)))


def with_noise(wave: np.ndarray, level_db: float, generator: np.random.Generator, colour: float = 0.0) -> np.ndarray:
    """Add noise of an RMS relative to full scale; `colour` is 0 for white noise, 1 for pink and 2 for brown noise."""
    spectrum = np.fft.rfft(generator.standard_normal(_fast_length(len(wave))))
    noise = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** (-colour / 2))[: len(wave)]
    return (wave + noise * (10 ** (level_db / 20) / np.sqrt((noise**2).mean()))).astype(np.float32)


def with_room(
    wave: np.ndarray, rate: int, reverberation: float, direct_db: float, generator: np.random.Generator
) -> np.ndarray:
    """Add the reverberation of a room, modelled as decaying noise.

    Args:
        reverberation: Seconds until it has decayed by 60 dB.
        direct_db: Energy of the direct sound relative to that of the reverberation.
    """
    times = np.arange(1, round(reverberation * rate)) / rate
    tail = generator.standard_normal(len(times)) * 10 ** (-3 * times / reverberation)
    tail *= 10 ** (-direct_db / 20) / np.sqrt((tail**2).sum())
    size, length = len(wave) + len(tail), _fast_length(len(wave) + len(tail))
    response = np.fft.rfft(np.concatenate([[1.0], tail]), length)
    return np.fft.irfft(np.fft.rfft(wave, length) * response)[:size].astype(np.float32)


def _fast_length(size: int) -> int:
    """Return the next power of two, for which Fourier transforms are fast."""
    return 1 << (size - 1).bit_length()


def with_pause(wave: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Insert silence at the weakest place of the middle half."""
    window, quarter = round(PAUSE_WINDOW * rate), len(wave) // 4
    power = np.convolve(wave[quarter : 3 * quarter] ** 2, np.ones(window), mode="valid")
    place = quarter + int(power.argmin()) + window // 2
    return np.insert(wave, place, np.zeros(round(seconds * rate), wave.dtype))


def random_recording(wave: np.ndarray, rate: int, seed: int) -> np.ndarray:
    """Return speech as a random microphone in a random room records it, from a quiet study to a noisy office."""
    generator = np.random.default_rng(seed)
    draw = generator.uniform
    if draw() < 0.3:
        wave = with_pause(wave, rate, draw(0.1, 0.5))
    if draw() < 0.6:
        wave = with_silence(wave, rate, *draw(0, LONGEST_SILENCE, size=2))
    if draw() < 0.5:
        wave = np.convolve(wave, [1.0, draw(-0.4, 0.4)]).astype(np.float32)  # the microphone's own tone
    if draw() < 0.5:
        wave = with_room(wave, rate, draw(0.1, 0.6), draw(3, 20), generator)
    if draw() < 0.8:
        wave = with_noise(wave, draw(-60, -36), generator, draw(0, 2))
    return wave * (10 ** (draw(-26, 0) / 20) / max(1.0, np.abs(wave).max()))

"""Measures of a clip's sound, and a fingerprint that copies of it in other formats share."""

import hashlib
from dataclasses import dataclass

import numpy as np

FLOOR_DB, CEILING_DB = -100.0, 100.0
FRAME_SECONDS = 0.02
NOISE_PERCENTILE, SPEECH_PERCENTILE = 10, 90  # of the power of frames
FULL_SCALE = 0.99
# The fingerprint: whether energy moves from a band to the next between neighbouring slices of the clip.
PRINT_RATE = 8000
BAND_EDGES_HZ = np.geomspace(200, 3600, 18)
SLICES = 17
PRINT_BITS = (SLICES - 1) * (len(BAND_EDGES_HZ) - 2)
PRINT_FLOOR = 0.01  # of the mean energy of a band, added to it: what the bits are in silence is not left to noise
WINDOW, HOP = 256, 64


@dataclass(frozen=True)
class SoundMeasures:
    """Measures of a clip.

    Attributes:
        level_db: Root mean square, dB relative to full scale.
        clipped: Share of the samples at full scale.
        snr_db: Estimated ratio of speech to noise: loud frames to quiet frames.
        print: Fingerprint of `PRINT_BITS` bits.
    """

    seconds: float
    level_db: float
    clipped: float
    snr_db: float
    print: bytes


def measure_sound(wave: np.ndarray, rate: int) -> SoundMeasures:
    """Measure a clip, (samples,) float32 in [-1, 1], not empty."""
    size = max(1, round(FRAME_SECONDS * rate))
    frames = wave[: len(wave) // size * size].reshape(-1, size) if len(wave) >= size else wave[None]
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    noise, speech = np.percentile(power, [NOISE_PERCENTILE, SPEECH_PERCENTILE])
    return SoundMeasures(
        seconds=len(wave) / rate,
        level_db=_decibels(np.square(wave, dtype=np.float64).mean()),
        clipped=float((np.abs(wave) >= FULL_SCALE).mean()),
        snr_db=_decibels(speech / noise) if noise else CEILING_DB,
        print=sound_print(wave, rate),
    )


def _decibels(ratio: float) -> float:
    return float(np.clip(10 * np.log10(max(ratio, 1e-30)), FLOOR_DB, CEILING_DB))


def sound_print(wave: np.ndarray, rate: int) -> bytes:
    """Return a fingerprint of a clip that hardly depends on level, format and sample rate.

    Clips too short for it, below 0.17 s, have one that only exact copies share.

    Source: the bits are those of Haitsma and Kalker, "A highly robust audio fingerprinting system" (2002), over
    slices whose length depends on the clip's.
    """
    import soxr

    wave = soxr.resample(wave / max(1.0, np.abs(wave).max()), rate, PRINT_RATE)
    if len(wave) < WINDOW + HOP * SLICES:
        return hashlib.blake2b(wave.tobytes(), digest_size=PRINT_BITS // 8).digest()
    windows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]  # (frames, samples)
    spectra = np.abs(np.fft.rfft(windows * np.hanning(WINDOW).astype(np.float32), axis=1)) ** 2
    places = np.searchsorted(np.fft.rfftfreq(WINDOW, 1 / PRINT_RATE), BAND_EDGES_HZ)
    bands = np.add.reduceat(spectra, places, axis=1)[:, :-1]  # (frames, bands)
    bands += PRINT_FLOOR * bands.mean(axis=0) + 1e-20
    starts = np.arange(SLICES) * len(bands) // SLICES
    energy = np.log(np.add.reduceat(bands, starts, axis=0))
    rises = np.diff(np.diff(energy, axis=1), axis=0) > 0  # (slices - 1, bands - 1)
    return np.packbits(rises).tobytes()


def print_keys(print_: bytes) -> list[int]:
    """Return numbers of which two fingerprints that differ in few bits share at least one."""
    words = np.frombuffer(print_, dtype=np.uint16)
    return [int(place << 16 | word) for place, word in enumerate(words.tolist())]


def print_distance(one: bytes, other: bytes) -> float:
    """Return the share of bits in which two fingerprints differ: about 0.5 for unrelated clips."""
    differing = np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)
    return float(np.unpackbits(differing).mean())

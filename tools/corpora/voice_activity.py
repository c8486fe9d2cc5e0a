"""Where somebody speaks in a recording of any length, by Silero VAD; a recording is never held in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK_SECONDS = 0.032  # 512 samples at 16 kHz, for which Silero gives one probability
CHUNK, RATE = 512, 16_000
BEGIN, END = 0.5, 0.35  # probabilities at which speech begins and ends
SHORTEST_SPEECH_SECONDS = 0.1
HEAD_SECONDS, TAIL_SECONDS = 0.1, 0.2  # kept around speech

Stretch = tuple[float, float]  # start and end, seconds


@dataclass(frozen=True)
class Splitting:
    """How recordings are split: at pauses, and where speech is least likely within stretches that are too long."""

    pause_seconds: float = 0.6
    max_seconds: float = 20.0


def speech_probabilities(vad: Any, blocks: Iterable[np.ndarray], rate: int) -> np.ndarray:
    """Return the probability of speech in each chunk of a recording, (chunks,) float32.

    Args:
        vad: Silero VAD, a `vita_audio.serve.turns.VadStream`.
        blocks: The samples in order, float32.
        rate: Their sample rate, Hz.
    """
    import soxr
    import torch

    resampler = soxr.ResampleStream(rate, RATE, num_channels=1, dtype="float32")
    vad.reset_states()
    unread, probabilities = np.zeros(0, np.float32), []

    def read(samples: np.ndarray) -> np.ndarray:
        """Read all whole chunks and return what is left."""
        whole = len(samples) // CHUNK * CHUNK
        with torch.no_grad():
            for chunk in torch.from_numpy(samples[:whole].reshape(-1, CHUNK)):
                probabilities.append(vad(chunk, RATE).item())
        return samples[whole:]

    for block in blocks:
        unread = read(np.concatenate([unread, resampler.resample_chunk(block)]))
    unread = np.concatenate([unread, resampler.resample_chunk(np.zeros(0, np.float32), last=True)])
    read(np.pad(unread, (0, -len(unread) % CHUNK)))
    return np.array(probabilities, np.float32)


def speech_stretches(probabilities: np.ndarray, total_seconds: float, splitting: Splitting) -> list[Stretch]:
    """Return the stretches of speech, with a little silence around them, none longer than the splitting allows."""
    pieces = [
        piece
        for run in _runs(probabilities, round(splitting.pause_seconds / CHUNK_SECONDS))
        for piece in _cut(probabilities, run, round((splitting.max_seconds - 1) / CHUNK_SECONDS))
    ]
    stretches = []
    for place, (first, stop) in enumerate(pieces):
        earliest = sum(pieces[place - 1][1:] + (first,)) / 2 if place else 0  # the middle of the pause
        latest = (stop + pieces[place + 1][0]) / 2 if place + 1 < len(pieces) else len(probabilities)
        start = max(first * CHUNK_SECONDS - HEAD_SECONDS, earliest * CHUNK_SECONDS, 0.0)
        end = min(stop * CHUNK_SECONDS + TAIL_SECONDS, latest * CHUNK_SECONDS, total_seconds)
        stretches.append((round(start, 3), round(end, 3)))
    return stretches


def _runs(probabilities: np.ndarray, pause: int) -> list[tuple[int, int]]:
    """Return the (first, stop) chunks of speech; shorter pauses belong to it, and very short sounds are no speech."""
    runs: list[tuple[int, int]] = []
    first = None
    for place, probability in enumerate(probabilities.tolist() + [0.0]):
        if first is None and probability >= BEGIN:
            first = place
        elif first is not None and probability < END:
            if (place - first) * CHUNK_SECONDS >= SHORTEST_SPEECH_SECONDS:
                if runs and first - runs[-1][1] < pause:
                    first = runs.pop()[0]
                runs.append((first, place))
            first = None
    return runs


def _cut(probabilities: np.ndarray, run: tuple[int, int], longest: int) -> Sequence[tuple[int, int]]:
    """Halve a run at the least likely speech in its middle half until no part is too long."""
    first, stop = run
    if stop - first <= max(longest, 1):
        return [run]
    quarter = (stop - first) // 4
    inside = probabilities[first + quarter : stop - quarter]
    smooth = np.convolve(inside, np.ones(5) / 5, mode="same")  # a pause rather than a single plosive
    middle = first + quarter + int(smooth[2:-2].argmin() + 2 if len(inside) > 4 else inside.argmin())
    return [*_cut(probabilities, (first, middle), longest), *_cut(probabilities, (middle, stop), longest)]

"""What a judge is: a speech recogniser that nobody here trained. What it understands tells how good speech is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from evaluation.progress import progress_bar
from vita_audio.audio_tokenizers.base import prepare_wave

SECONDS_BEFORE, SECONDS_AFTER = 0.1, 0.5  # silence around a wave: recognisers clip words at sharp edges
SHORTEST_SECONDS = 0.05  # below this nothing was said

Sound = tuple[Tensor, int]  # (samples,) float32 in [-1, 1], and its rate in Hz


class JudgeUnavailableError(OSError):
    """A judge cannot be loaded; without it nothing that is spoken has a score."""


def is_audible(sound: Sound | None) -> bool:
    """Say whether there is anything to hear: not None, not a few samples only, not all zero, numbers throughout."""
    if sound is None or len(sound[0]) < SHORTEST_SECONDS * sound[1]:
        return False
    return bool(sound[0].any() and sound[0].isfinite().all())


class Judge(ABC):
    """Writes down what it hears.

    Attributes:
        name: The model, as in `get_judge`; stands beside every figure that comes from it.
        sample_rate: What it listens at, Hz.
        language: What it expects to hear.
    """

    name: str
    sample_rate: int
    language: str = "en"

    @abstractmethod
    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        """Yield the text of each wave, (samples,) float32 at `sample_rate` with silence around it, in order."""

    def transcribe(self, sounds: Sequence[Sound | None], *, progress: str | None = None) -> list[str]:
        """Return the text of each sound; where there is none, or nothing in it, the text is "" and so all wrong.

        Args:
            progress: Name of a progress bar.
        """
        heard = [index for index, sound in enumerate(sounds) if is_audible(sound)]
        texts = [""] * len(sounds)
        transcripts = self._transcribe_all([self._prepare(*sounds[index]) for index in heard])
        bar = progress_bar(transcripts, total=len(heard), desc=progress, unit="clip", disable=progress is None)
        for index, text in zip(heard, bar, strict=True):
            texts[index] = text.strip()
        return texts

    def _prepare(self, wave: Tensor, rate: int) -> np.ndarray:
        wave = prepare_wave(wave, rate, self.sample_rate)
        silence = (round(SECONDS_BEFORE * self.sample_rate), round(SECONDS_AFTER * self.sample_rate))
        return torch.nn.functional.pad(wave, silence).numpy()

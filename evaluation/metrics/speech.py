"""Metrics of speech besides intelligibility: voice similarity and sound quality.

Samples without audio count in both with the worst possible value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.judges import Sound, is_audible
from evaluation.metrics.score import Score, check_same_length
from evaluation.optional import require
from vita_audio.constants import INPUT_RATE

LOWEST_MOS = 1.0  # opinion scores range from 1, bad, to 5, excellent
NO_SIMILARITY = 0.0


class SpeakerSimilarity:
    """Cosine similarity of speaker embeddings from Resemblyzer, whose weights are part of the package.

    Seed-TTS uses a WavLM model that has to be downloaded, so values are not comparable with published ones. Two
    recordings of one voice reach about 0.86, of two voices at most about 0.74.
    """

    name = "resemblyzer"

    def __init__(self):
        """Load the model. Raises: MissingPackageError, an ImportError, without Resemblyzer."""
        self._package = require(
            "resemblyzer",
            purpose="speaker similarity",
            install="--no-deps resemblyzer, then pip install librosa webrtcvad-wheels",
        )
        self._encoder = self._package.VoiceEncoder("cpu", verbose=False)

    def similarities(
        self, sounds: Sequence[Sound | None], voices: Sequence[Sound], *, ids: Sequence[str] | None = None
    ) -> Score:
        """Return the mean similarity of each sound to the voice it should have; 0 for inaudible sounds.

        Raises: ValueError if the lists differ in length or a voice is missing.
        """
        check_same_length("sound", len(sounds), "voice", len(voices))
        if silent := [place for place, voice in enumerate(voices) if not is_audible(voice)]:
            raise ValueError(
                f"each sound needs a voice to be compared with, got nothing to hear at places {silent[:5]}"
            )
        return Score.of_mean(
            [
                float(self._embed(sound) @ self._embed(voice)) if is_audible(sound) else NO_SIMILARITY
                for sound, voice in zip(sounds, voices, strict=True)
            ],
            ids,
        )

    def _embed(self, sound: Sound) -> np.ndarray:
        """Return a vector of length 1, (256,), float32."""
        return self._encoder.embed_utterance(self._package.preprocess_wav(_wave(sound)))


class PredictedMos:
    """DNSMOS: predicted mean opinion score of the sound, from 1 to 5; slower than real time, so for few clips only."""

    name = "dnsmos"

    def __init__(self):
        """Load the package. Raises: MissingPackageError, an ImportError, without speechmos."""
        self._package = require("speechmos.dnsmos", purpose="predicted MOS", install="'vita-audio[evaluation_mos]'")

    def opinions(self, sounds: Sequence[Sound | None], *, ids: Sequence[str] | None = None) -> Score:
        """Return the mean of the predicted overall scores; 1 for inaudible sounds."""
        return Score.of_mean([self._opinion(sound) if is_audible(sound) else LOWEST_MOS for sound in sounds], ids)

    def _opinion(self, sound: Sound) -> float:
        return float(self._package.run(_wave(sound).clip(-1, 1), INPUT_RATE)["ovrl_mos"])


def _wave(sound: Sound) -> np.ndarray:
    from vita_audio.audio_tokenizers.base import prepare_wave

    return prepare_wave(*sound, INPUT_RATE).numpy()

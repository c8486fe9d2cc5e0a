"""Measures of speech besides intelligibility: voice and sound quality. Inaudible sounds get the worst value."""

from __future__ import annotations

import numpy as np

from evaluation.judges import Sound, is_audible
from evaluation.optional import require
from vita_audio.constants import INPUT_RATE

LOWEST_MOS = 1.0  # opinion scores range from 1, bad, to 5, excellent
NO_SIMILARITY = 0.0


class SpeakerSimilarity:
    """Cosine similarity of speaker embeddings from Resemblyzer, whose weights are part of the package.

    Seed-TTS uses a WavLM model that has to be downloaded, so values are not comparable with published ones. Two
    recordings of one voice reach about 0.86, of two voices at most about 0.74.
    """

    def __init__(self):
        """Load the model. Raises: MissingPackageError, an ImportError, without Resemblyzer."""
        self._package = require(
            "resemblyzer",
            purpose="speaker similarity",
            install="--no-deps resemblyzer, then pip install librosa webrtcvad-wheels",
        )
        self._encoder = self._package.VoiceEncoder("cpu", verbose=False)

    def measure(self, sound: Sound | None, voice: Sound) -> float:
        """Return the similarity of a sound to the voice it should have.

        Raises: ValueError if the voice is inaudible.
        """
        if not is_audible(voice):
            raise ValueError("a sound needs a voice to be compared with, got one without anything to hear")
        return float(self._embed(sound) @ self._embed(voice)) if is_audible(sound) else NO_SIMILARITY

    def _embed(self, sound: Sound) -> np.ndarray:
        """Return a vector of length 1, (256,), float32."""
        return self._encoder.embed_utterance(self._package.preprocess_wav(_wave(sound)))


class PredictedMos:
    """DNSMOS: predicted mean opinion score of the sound, from 1 to 5; slower than real time, so for few clips only."""

    def __init__(self):
        """Load the package. Raises: MissingPackageError, an ImportError, without speechmos."""
        self._package = require("speechmos.dnsmos", purpose="predicted MOS", install="'vita-audio[evaluation_mos]'")

    def measure(self, sound: Sound | None, voice: Sound | None = None) -> float:
        """Return the predicted overall score of a sound; the voice makes no difference."""
        if not is_audible(sound):
            return LOWEST_MOS
        return float(self._package.run(_wave(sound).clip(-1, 1), INPUT_RATE)["ovrl_mos"])


def _wave(sound: Sound) -> np.ndarray:
    from vita_audio.audio_tokenizers.base import prepare_wave

    return prepare_wave(*sound, INPUT_RATE).numpy()

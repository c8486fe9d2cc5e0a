"""The contract of every audio tokenizer: wave to codes, codes to wave, whole or as a stream."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vita_audio.resample import resample


class AudioStream(ABC):
    """Codes to wave while they come, for one stream; holds all of the stream's state."""

    @abstractmethod
    def push(self, codes: Sequence[int]) -> Tensor:
        """Take the next codes, any number; return the samples that are finished, (samples,), float32, possibly none.

        Raises: ValueError for a code outside the vocabulary, or after `flush`.
        """

    @abstractmethod
    def flush(self) -> Tensor:
        """End the stream and return the rest, (samples,), float32."""


class AudioTokenizer(ABC):
    """Between waves and discrete codes. Holds weights only, so one serves any number of streams.

    Attributes:
        name: As in `get_audio_tokenizer`.
        sample_rate: What `encode` works at, Hz; other rates are resampled.
        output_rate: Of the waves from `decode`, Hz.
        frame_rate: Codes per second.
        vocab_size: Codes are 0..vocab_size - 1.
        codes_per_group: Codes come in groups of so many; an incomplete last group is completed in decoding.
        needs_voice: Codes alone do not say who speaks, so decoding must be given a voice.
    """

    name: str
    sample_rate: int
    output_rate: int
    frame_rate: float
    vocab_size: int
    codes_per_group: int = 1
    needs_voice: bool = False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Name and hash of all that decides which codes a wave gets, for stores of codes."""

    @abstractmethod
    def stream(self, voice: Any = None) -> AudioStream:
        """Begin decoding one stream of codes; `voice` as in `decode`."""

    @abstractmethod
    def _encode(self, waves: list[Tensor]) -> list[list[int]]:
        """Encode waves, (samples,) float32 at `sample_rate`, none of them empty."""

    @abstractmethod
    def _decode(self, codes: list[int], voice: Any) -> Tensor:
        """Decode codes, one or more, all in the vocabulary."""

    def make_voice(self, wave: Tensor | np.ndarray, sample_rate: int) -> Any:
        """Return what `decode` and `stream` of this tokenizer need to speak with the voice of a wave.

        Arguments as in `encode`. Raises: ValueError where `encode` does, and if this codec has no voices.
        """
        return self._make_voice(prepare_wave(wave, sample_rate, self.sample_rate))

    def _make_voice(self, wave: Tensor) -> Any:
        raise ValueError(f"{self.name} has no voices to choose, its codes say how they sound; decode without a voice")

    def encode(self, wave: Tensor | np.ndarray, sample_rate: int) -> list[int]:
        """Return the codes of a wave of any length.

        Args:
            wave: (samples,), or (channels, samples), of which the first channel counts; floats, full scale [-1, 1].
            sample_rate: Of the wave, Hz.
        Raises: ValueError for a wave that is empty, not finite, not float, or of another shape.
        """
        return self.encode_batch([wave], sample_rate)[0]

    def encode_batch(self, waves: Sequence[Tensor | np.ndarray], sample_rate: int) -> list[list[int]]:
        """Return the codes of each wave, the same as `encode` gives one by one."""
        return self._encode([prepare_wave(wave, sample_rate, self.sample_rate) for wave in waves])

    def decode(self, codes: Sequence[int], voice: Any = None) -> Tensor:
        """Return the wave of codes: (samples,), float32 in [-1, 1], at `output_rate`; no codes give no samples.

        Args:
            voice: From `make_voice`; None: the voice that the tokenizer was loaded with, or the one of the weights.
        Raises: ValueError for a code outside the vocabulary, or without a voice where `needs_voice`.
        """
        codes = check_codes(codes, self.vocab_size)
        return self._decode(codes, voice) if codes else torch.zeros(0)


def prepare_wave(wave: Tensor | np.ndarray, sample_rate: int, target_rate: int) -> Tensor:
    """Check a wave and bring its first channel to `target_rate`: (samples,), float32, on the CPU, never empty.

    Arguments and errors are those of `AudioTokenizer.encode`.
    """
    wave = wave.detach().cpu() if isinstance(wave, Tensor) else torch.as_tensor(wave)
    if not wave.is_floating_point():
        raise ValueError(f"wave must be floats with full scale [-1, 1], got {wave.dtype}; divide int16 by 32768")
    if wave.dim() not in (1, 2):
        raise ValueError(f"wave must be (samples,) or (channels, samples), got shape {tuple(wave.shape)}")
    if wave.numel() == 0:
        raise ValueError(f"wave must have samples, got shape {tuple(wave.shape)}; leave empty audio out")
    if wave.dim() == 2:
        if wave.shape[0] > wave.shape[1]:
            raise ValueError(f"wave must be (channels, samples), got shape {tuple(wave.shape)}; transpose it")
        wave = wave[0]
    wave = wave.float()
    if num_bad := int((~wave.isfinite()).sum()):
        raise ValueError(f"wave must be finite, got {num_bad} of {len(wave)} samples that are NaN or infinite")
    return resample(wave, sample_rate, target_rate)


def check_codes(codes: Sequence[int], vocab_size: int) -> list[int]:
    """Return `codes` as a list of int.

    Raises: TypeError if one is not an integer, ValueError if one is not in 0..vocab_size - 1.
    """
    codes = [index(code) for code in codes]
    if wrong := [code for code in codes if not 0 <= code < vocab_size]:
        raise ValueError(f"audio codes must be in 0..{vocab_size - 1}, got {len(wrong)} others such as {wrong[:5]}")
    return codes


def fingerprint(name: str, settings: Sequence[Any], weights: Mapping[str, Tensor]) -> str:
    """Hash what decides the codes of a wave: `name`, a hyphen, and 16 hexadecimal digits.

    Args:
        settings: What JSON can hold and the weights do not show, in a fixed order.
    """
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8)
    for key, value in sorted(weights.items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return f"{name}-{digest.hexdigest()}"

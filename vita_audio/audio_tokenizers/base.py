"""The contract of every audio tokenizer: wave to codes, codes to wave, whole or as a stream."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vita_audio.resample import resample
from vita_audio.speech_decoder.inputs import check_codes


@dataclass(frozen=True)
class Voice:
    """Who speaks, for flow decoders.

    Args:
        codes, mel: A sample, as codes and as log-mel (bands, frames); both or neither.
        embedding: (size,), or None.
    """

    codes: Sequence[int] | None = None
    mel: Tensor | None = None
    embedding: Tensor | None = None

    def as_prompt(self) -> dict[str, Any]:
        """The arguments that a decoder's `start` and `decode` take."""
        return {"prompt_codes": self.codes, "prompt_mel": self.mel, "embedding": self.embedding}


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
        has_voices: Waves can be made to speak with a voice of one's choice.
        needs_voice: Codes do not say who speaks, and the tokenizer was loaded without a voice.
    """

    name: str
    sample_rate: int
    output_rate: int
    frame_rate: float
    vocab_size: int
    codes_per_group: int = 1
    has_voices: bool = False
    needs_voice: bool = False

    @property
    def bits_per_code(self) -> float:
        """Bits that one code carries at most; where codes come in groups, each has a codebook of its own."""
        return log2(self.vocab_size / self.codes_per_group)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Name and hash of all that decides which codes a wave gets, for stores of codes."""

    @abstractmethod
    def _encode(self, waves: list[Tensor]) -> list[list[int]]:
        """Encode waves, (samples,) float32 at `sample_rate`, none of them empty."""

    @abstractmethod
    def _decode(self, codes: list[int], voice: Any) -> Tensor:
        """Decode codes, one or more, all in the vocabulary."""

    @abstractmethod
    def _stream(self, voice: Any) -> AudioStream:
        """Begin decoding a stream."""

    def _make_voice(self, wave: Tensor) -> Any:
        """Make a voice of a wave, (samples,) float32 at `sample_rate`; called only if the class `has_voices`."""
        raise NotImplementedError

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
        Raises: ValueError for a code outside the vocabulary, or for a voice where `has_voices` is false.
        """
        codes = check_codes(codes, self.vocab_size)
        self.check_voice(voice)
        return self._decode(codes, voice) if codes else torch.zeros(0)

    def stream(self, voice: Any = None) -> AudioStream:
        """Begin decoding one stream of codes; `voice` and errors as in `decode`."""
        self.check_voice(voice)
        return self._stream(voice)

    def make_voice(self, wave: Tensor | np.ndarray, sample_rate: int) -> Any:
        """Return what `decode` and `stream` of this tokenizer need to speak with the voice of a wave.

        Arguments as in `encode`. Raises: ValueError where `encode` does, and if this codec has no voices.
        """
        self._need_voices()
        return self._make_voice(prepare_wave(wave, sample_rate, self.sample_rate))

    def check_voice(self, voice: Any) -> None:
        """Raise ValueError if codes cannot be decoded with a voice; None, for no choice of one, always passes."""
        if voice is not None:
            self._need_voices()

    def _need_voices(self) -> None:
        if not self.has_voices:
            raise ValueError(f"{self.name} has no voices, its codes say how they sound; decode without one")


def prepare_wave(
    wave: Tensor | np.ndarray, sample_rate: int, target_rate: int, *, channel: Literal["first", "mean"] = "first"
) -> Tensor:
    """Check a wave and bring one channel to `target_rate`: (samples,), float32, on the CPU, never empty.

    Other arguments and errors are those of `AudioTokenizer.encode`.

    Args:
        channel: "first" takes the first channel, "mean" averages the channels.
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
        wave = wave[0] if channel == "first" else wave.mean(dim=0)
    wave = wave.float()
    if num_bad := int((~wave.isfinite()).sum()):
        raise ValueError(f"wave must be finite, got {num_bad} of {len(wave)} samples that are NaN or infinite")
    return resample(wave, sample_rate, target_rate)


def fingerprint(name: str, settings: Sequence[Any], weights: Mapping[str, Tensor]) -> str:
    """Hash what decides the codes of a wave: `name`, a hyphen, and 16 hexadecimal digits.

    Args:
        settings: What JSON can hold and the weights do not show, in a fixed order.
    """
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8)
    for key, value in sorted(weights.items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return f"{name}-{digest.hexdigest()}"

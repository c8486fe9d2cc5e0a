"""Interface of all audio tokenizers: waves to codes, and codes to waves, at once or as a stream."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.resample import resample
from vita_audio.speech_decoder.streaming import Voice, check_codes
from vita_audio.stopwatch import Stopwatch


class AudioStream:
    """Decodes one stream of codes as they arrive. The wave does not depend on how the codes are pushed."""

    def __init__(
        self, decode_chunk: Callable[[list[int], bool], Tensor], vocab_size: int, chunk_sizes: Sequence[int] = ()
    ):
        """Begin a stream.

        Args:
            decode_chunk: Function of the next codes, and of whether they are the last, that returns the finished
                samples, (samples,), float32; it keeps the state of the decoder.
            vocab_size: Codes are 0..vocab_size - 1.
            chunk_sizes: Codes in the first, second, ... chunk; the last size repeats. Empty: `decode_chunk` forms its
                own chunks from codes of any number.
        """
        self._decode_chunk, self._vocab_size = decode_chunk, vocab_size
        self._sizes, self._pending = list(chunk_sizes), []
        self._is_finished = False

    def push(self, codes: Sequence[int]) -> Tensor:
        """Take the next codes, any number of them, and return the finished samples, (samples,), float32; may be none.

        Raises: ValueError for a code outside the vocabulary, or after `flush`.
        """
        if self._is_finished:
            raise ValueError("this stream was flushed; begin another one with stream()")
        self._pending += check_codes(codes, self._vocab_size)
        waves = [torch.zeros(0)]
        while self._pending and len(self._pending) >= (size := self._sizes[0] if self._sizes else len(self._pending)):
            waves.append(self._decode_chunk(self._pending[:size], False))
            self._pending, self._sizes = self._pending[size:], self._sizes[1:] or self._sizes
        return torch.cat(waves)

    def flush(self) -> Tensor:
        """End the stream and return the remaining samples, (samples,), float32."""
        self._is_finished = True
        codes, self._pending = self._pending, []
        return self._decode_chunk(codes, True)


def check_chunk_sizes(stream_chunks: Sequence[int]) -> tuple[int, ...]:
    """Return the chunk sizes of a stream as a tuple. Raises: ValueError if there are none or one is not positive."""
    if not stream_chunks or min(stream_chunks) < 1:
        raise ValueError(f"stream_chunks must be positive numbers of codes, got {stream_chunks}")
    return tuple(stream_chunks)


class AudioTokenizer(ABC):
    """Converts waves to discrete codes and back. Holds only weights, so that one instance serves any number of streams.

    Attributes:
        name: As in `get_audio_tokenizer`.
        released_as: Name of the public weights on the hub.
        hub_files: Names of the files to download; None for the whole repository.
        has_one_folder: Codes and waves need the same folder, which is given as `path` alone.
        voice_class: Kind of voice that waves can be decoded with; None if the codes themselves determine the voice.
        sample_rate: Rate that `encode` works at, Hz; waves of other rates are resampled.
        output_rate: Rate of decoded waves, Hz.
        frame_rate: Codes per second.
        vocab_size: Codes are 0..vocab_size - 1.
        codes_per_group: Codes come in groups of this size; decoding completes an incomplete last group.
        needs_voice: The codes do not determine the voice, and the tokenizer was loaded without one.
        decoder: The speech decoder of codecs that have one in a folder of its own; None if it was not loaded.
    """

    name: str
    released_as: str
    hub_files: Sequence[str] | None = None
    has_one_folder: bool = False
    voice_class: type[Voice] | None = None
    sample_rate: int
    output_rate: int
    frame_rate: float
    vocab_size: int
    codes_per_group: int = 1
    needs_voice: bool = False
    decoder: Any = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        decoder_path: str | Path | None = None,
        *,
        device: str = "cpu",
        offline: bool = False,
        **options,
    ) -> "AudioTokenizer":
        """Load a tokenizer.

        Args:
            path: Folder or hub name of the weights that make codes.
            decoder_path: The same for the weights that make waves. None: only `encode` works, unless the codec
                `has_one_folder`.
            offline: Use only files that were downloaded earlier.
            options: Arguments of the class.
        Raises: FileNotFoundError, ValueError naming the missing or wrong file or option; MissingPackageError.
        """
        if path is None:
            raise ValueError(f"{cls.name} has no weights in this package; give the folder of {cls.released_as} as path")
        if cls.has_one_folder and decoder_path not in (None, path):
            raise ValueError(f"{cls.name} has one folder for codes and waves, got {path} and {decoder_path}")
        folder, decoder_folder = (
            None if place is None else find_checkpoint(place, offline=offline, files=cls.hub_files)
            for place in (path, decoder_path)
        )
        return cls._load(folder, decoder_folder, device, **options)

    @classmethod
    @abstractmethod
    def _load(cls, folder: Path, decoder_folder: Path | None, device: str, **options) -> "AudioTokenizer":
        """Load the weights in these folders; arguments and errors as in `from_pretrained`."""

    @property
    def bits_per_code(self) -> float:
        """Upper bound of the bits per code; where codes come in groups, each position has a codebook of its own."""
        return log2(self.vocab_size / self.codes_per_group)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Name and hash of everything that decides which codes a wave gets; identifies stores of codes."""

    @property
    def identity(self) -> dict[str, str]:
        """Entry of a model's configuration that identifies the tokenizer whose codes it was trained on."""
        return {"type": self.name, "fingerprint": self.fingerprint}

    def _front_end(self, wave: Tensor) -> Tensor:
        """Change a wave, (samples,) float32 at `sample_rate`, before it is encoded."""
        return wave

    def _encode(self, waves: list[Tensor]) -> list[list[int]]:
        """Encode waves, (samples,) float32 at `sample_rate`, none of them empty, after `_front_end`."""
        return [self._encode_one(wave) for wave in waves]

    def _encode_one(self, wave: Tensor) -> list[int]:
        """Encode one wave; codecs that encode several waves at once define `_encode` in its place."""
        raise NotImplementedError

    @abstractmethod
    def _decode(self, codes: list[int], voice: Voice | None) -> Tensor:
        """Decode one or more codes, all in the vocabulary."""

    @abstractmethod
    def _stream(self, voice: Voice | None, stopwatch: Stopwatch) -> AudioStream:
        """Begin decoding a stream whose work is measured as the stages "flow" and "vocoder"."""

    def _make_voice(self, wave: Tensor) -> Voice:
        """Make a voice from a wave, (samples,) float32 at `sample_rate`, after `_front_end`.

        Called only if there is a `voice_class`.
        """
        raise NotImplementedError

    def encode(self, wave: Tensor | np.ndarray, sample_rate: int) -> list[int]:
        """Return the codes of a wave of any length.

        Args:
            wave: (samples,), or (channels, samples), of which the first channel is used; floats, full scale [-1, 1].
            sample_rate: Rate of the wave, Hz.
        Raises: ValueError for a wave that is empty, not finite, not float, or of another shape.
        """
        return self.encode_batch([wave], sample_rate)[0]

    def encode_batch(self, waves: Sequence[Tensor | np.ndarray], sample_rate: int) -> list[list[int]]:
        """Return the codes of each wave, equal to those of `encode` for each wave alone."""
        return self._encode([self.prepare(wave, sample_rate) for wave in waves])

    def prepare(self, wave: Tensor | np.ndarray, sample_rate: int) -> Tensor:
        """Return the wave that the codes stand for: (samples,), float32, at `self.sample_rate`.

        Arguments and errors as in `encode`.
        """
        return self._front_end(prepare_wave(wave, sample_rate, self.sample_rate))

    def decode(self, codes: Sequence[int], voice: Voice | None = None) -> Tensor:
        """Return the wave of codes: (samples,), float32 in [-1, 1], at `output_rate`; no codes give no samples.

        Args:
            voice: From `make_voice`. None: the voice that the tokenizer was loaded with, or the default one.
        Raises: ValueError for a code outside the vocabulary, for a voice of another codec, or without a decoder.
        """
        codes = check_codes(codes, self.vocab_size)
        self.check_voice(voice)
        return self._decode(codes, voice) if codes else torch.zeros(0)

    def stream(self, voice: Voice | None = None, stopwatch: Stopwatch | None = None) -> AudioStream:
        """Begin decoding one stream of codes; `voice` and errors as in `decode`.

        Args:
            stopwatch: Gets the seconds of the stages "flow", for codecs that have one, and "vocoder".
        """
        self.check_voice(voice)
        return self._stream(voice, stopwatch or Stopwatch())

    def make_voice(self, wave: Tensor | np.ndarray, sample_rate: int) -> Voice:
        """Return the voice of a wave for `decode` and `stream`; arguments and errors as in `encode`.

        Raises: ValueError also if this codec has no voices.
        """
        self._need_voices()
        return self._make_voice(self.prepare(wave, sample_rate))

    def check_voice(self, voice: Voice | None) -> None:
        """Raise ValueError if codes cannot be decoded with a voice; None (no choice of voice) always passes."""
        if voice is None:
            return
        self._need_voices()
        if not isinstance(voice, self.voice_class):
            raise ValueError(f"{self.name} needs a voice from its own make_voice, got a {type(voice).__name__}")

    def _need_voices(self) -> None:
        if self.voice_class is None:
            raise ValueError(f"{self.name} has no voices because its codes determine the voice; decode without one")

    def _need_decoder(self) -> Any:
        if self.decoder is None:
            raise ValueError(f"{self.name} was loaded without a speech decoder; give decoder_path to make waves")
        return self.decoder


def prepare_wave(
    wave: Tensor | np.ndarray, sample_rate: int, target_rate: int, *, channel: Literal["first", "mean"] = "first"
) -> Tensor:
    """Check a wave and resample one channel, or the mean of all, to `target_rate`.

    Other arguments and errors as in `AudioTokenizer.encode`.

    Returns: (samples,), float32, on the CPU, never empty.
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


def check_identity(trained_with: Mapping[str, str], given: Mapping[str, str], model_name: str | Path) -> None:
    """Raise ValueError if a model was trained on the codes of another audio tokenizer than the given one.

    Args:
        trained_with: Entry of the model's configuration, an `AudioTokenizer.identity`.
        given: Identity of the audio tokenizer to be used.
    """
    if trained_with == given:
        return
    other = f"other weights of {given['type']}"
    if trained_with["type"] != given["type"]:
        other = f"{given['type']} instead of {trained_with['type']}"
    raise ValueError(
        f"{model_name} was trained on codes of the audio tokenizer {trained_with['fingerprint']}, got "
        f"{given['fingerprint']}: {other}, whose codes mean something else; give the folder of the one it was trained "
        "with"
    )


def fingerprint(name: str, settings: Sequence[Any], weights: Mapping[str, Tensor]) -> str:
    """Hash everything that decides the codes of a wave; returns `name`, a hyphen and 16 hexadecimal digits.

    Args:
        settings: Settings that the weights do not show, as JSON values in a fixed order.
    """
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8)
    for key, value in sorted(weights.items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return f"{name}-{digest.hexdigest()}"

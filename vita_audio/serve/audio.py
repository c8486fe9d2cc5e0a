"""Audio on the wire: 16-bit PCM, WAV that says it is generated, uploaded files, and resampling of streams."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

OUTPUT_RATE = 24_000  # Hz, of all audio sent; the rate that OpenAI's clients expect
COMMENT = b"AI-generated\0\0"  # ends in NUL and has an even length, as RIFF asks
MIN_SECONDS = 0.1  # of a turn or file, as at OpenAI
MAX_RATE, MAX_CHANNELS = 192_000, 2  # of files of clients: a small FLAC of zeros can be gigabytes of samples
MAX_SAMPLE = 10.0  # of files of floats; full scale is 1, and the power of huge samples is infinite
_UNKNOWN_SIZE = 0xFFFFFFFF  # size in the header of a WAV file that is still being written


class StreamResampler:
    """Resamples a wave that arrives in pieces; the result does not depend on where it was cut."""

    def __init__(self, rate: int, target_rate: int):
        self._stream = None if rate == target_rate else soxr.ResampleStream(rate, target_rate, 1, dtype="float32")

    def push(self, wave: Tensor, *, is_last: bool = False) -> Tensor:
        """Return the finished samples, (samples,), float32."""
        if self._stream is None:
            return wave
        return torch.from_numpy(self._stream.resample_chunk(wave.numpy(), last=is_last))

    def flush(self) -> Tensor:
        return self.push(torch.zeros(0), is_last=True)


def to_pcm16(wave: Tensor) -> bytes:
    """Return a wave, (samples,) float32 in [-1, 1], as little-endian 16-bit PCM."""
    return (wave.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes()


def from_pcm16(data: bytes) -> Tensor:
    """Return little-endian 16-bit PCM as a wave, (samples,), float32 in [-1, 1].

    Raises: ValueError for half a sample.
    """
    if len(data) % 2:
        raise ValueError(f"audio must be 16-bit PCM, got an odd number of bytes, {len(data)}")
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768)


def wav_header(num_samples: int | None = None) -> bytes:
    """Return the header of a mono 16-bit WAV file at OUTPUT_RATE, with the comment "AI-generated".

    Args:
        num_samples: None if it is not known yet.
    """
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, OUTPUT_RATE, 2 * OUTPUT_RATE, 2, 16)
    info = struct.pack("<4sI4s4sI", b"LIST", 12 + len(COMMENT), b"INFO", b"ICMT", len(COMMENT)) + COMMENT
    chunks = b"WAVE" + fmt + info
    data_size = _UNKNOWN_SIZE if num_samples is None else 2 * num_samples
    riff_size = _UNKNOWN_SIZE if num_samples is None else len(chunks) + 8 + data_size
    return struct.pack("<4sI", b"RIFF", riff_size) + chunks + struct.pack("<4sI", b"data", data_size)


def to_wav(wave: Tensor) -> bytes:
    return wav_header(len(wave)) + to_pcm16(wave)


def read_audio(data: bytes, max_seconds: float) -> tuple[Tensor, int]:
    """Decode an audio file in memory, in any container that soundfile knows.

    Returns: The wave, (channels, samples) float32, and its rate.
    Raises: ValueError for data that is not audio, is shorter than MIN_SECONDS or longer than `max_seconds`, or has too
        many channels, too high a rate or too large samples; nothing that is too large is decoded.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            seconds = file.frames / file.samplerate
            if seconds > max_seconds:
                raise ValueError(f"audio must be at most {max_seconds:g} s long, got {seconds:.1f} s")
            if file.channels > MAX_CHANNELS or file.samplerate > MAX_RATE:
                got = f"{file.channels} channels at {file.samplerate} Hz"
                raise ValueError(f"audio must have at most {MAX_CHANNELS} channels at {MAX_RATE} Hz, got {got}")
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"audio is not readable ({error.error_string}); send WAV, FLAC, MP3 or OGG") from error
    if len(samples) < MIN_SECONDS * rate:
        raise ValueError(f"audio must be at least {MIN_SECONDS:g} s long, got {len(samples) / rate:.3f} s")
    if (loudest := np.abs(samples).max()) > MAX_SAMPLE:  # false for NaN, which the model's front end reports
        raise ValueError(f"samples must be floats with full scale [-1, 1], got one of {loudest:g}")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate

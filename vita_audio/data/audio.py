"""Read audio files: any container that soundfile knows, at any rate, as a mono wave at the requested rate.

Every path may also name a part of a file, see `vita_audio.data.audio_part`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from vita_audio.data.audio_part import AudioPart
from vita_audio.resample import resample

Channel = Literal["first", "mean"]

# Log message of libsndfile if the data size in a header (WAV, W64, AIFF, AU) differs from the real one.
_WRONG_DATA_SIZE = re.compile(r"^ *(?:data|riff|SSND|Data Size) +: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_DATA_SIZE = 0x7FFFF000  # the header of a file written to a pipe states 0 or at least this size
_UNKNOWN_FRAMES = 2**62  # libsndfile reports more for FLAC from a pipe, which soundfile cannot read
_LENGTH_TOLERANCE_SECONDS = 0.1  # lossy containers state their length only approximately


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class AudioInfo:
    """Format and length of audio, according to its header."""

    seconds: float
    sample_rate: int
    channels: int


def load_audio(path: str | Path, sample_rate: int, *, channel: Channel = "first") -> Tensor:
    """Read audio as a mono wave.

    Args:
        path: An audio file, or a part of a file.
        sample_rate: Requested rate, Hz.
        channel: `"first"` for the first channel (discrete codecs), `"mean"` for the average (SenseVoice features).
    Returns: (samples,), float32, full scale is [-1, 1].
    Raises: FileNotFoundError, or AudioError for a file that is empty, truncated, not audio, or holds NaN or infinity.
    """
    if channel not in ("first", "mean"):
        raise ValueError(f'channel must be "first" or "mean", got {channel!r}')
    part = AudioPart.parse(path)
    with _opened(path, part) as file:
        samples = file.read(_seek(path, file, part), dtype="float32", always_2d=True)
        _check_length(path, file, part, len(samples))
        file_rate = file.samplerate
    wave = samples[:, 0] if channel == "first" else samples.mean(axis=1)  # samples: (samples, channels)
    return resample(torch.from_numpy(_checked(path, wave)), file_rate, sample_rate)


def stated_seconds(path: str | Path) -> float:
    """Return the duration of audio according to its header, without reading the samples.

    Raises: FileNotFoundError, or AudioError for a file that is empty or not audio.
    """
    return audio_info(path).seconds


def audio_info(path: str | Path) -> AudioInfo:
    """Return the format and length of audio without reading the samples. Raises: as `stated_seconds`."""
    part = AudioPart.parse(path)
    with _opened(path, part) as file:
        seconds = part.seconds[1] - part.seconds[0] if part.seconds else file.frames / file.samplerate
        return AudioInfo(seconds, file.samplerate, file.channels)


def audio_blocks(path: str | Path, block_seconds: float = 30.0) -> Iterator[np.ndarray]:
    """Yield the first channel at its own rate in blocks, (samples,) float32, so that any length fits into memory.

    Raises: as `load_audio`; a file that ends early is noticed at its end.
    """
    part = AudioPart.parse(path)
    with _opened(path, part) as file:
        num_samples = left = _seek(path, file, part)
        size = round(block_seconds * file.samplerate)
        while left and len(samples := file.read(min(size, left), dtype="float32", always_2d=True)):
            left -= len(samples)
            yield _checked(path, samples[:, 0])
        _check_length(path, file, part, num_samples - left)


@contextmanager
def _opened(path: str | Path, part: AudioPart) -> Iterator[soundfile.SoundFile]:
    """Open an audio file; an exception while it is opened or read becomes an AudioError."""
    if os.path.isdir(part.file):
        raise AudioError(f"{path}: a folder, not an audio file")
    if not os.path.isfile(part.file):  # unlike Path.is_file, also accepts names that are too long or contain NUL
        raise FileNotFoundError(f"{path}: no such audio file")
    try:
        with part.open() as source, soundfile.SoundFile(source) as file:
            if file.frames >= _UNKNOWN_FRAMES:
                raise AudioError(f"{path}: its header does not state the length; write the file again, as WAV")
            yield file
    except AudioError:
        raise
    except Exception as error:  # LibsndfileError, but also TypeError for .raw, ValueError, UnicodeDecodeError, ...
        reason = getattr(error, "error_string", error)
        is_empty = os.path.getsize(part.file) == 0 or (part.span is not None and part.span[1] == 0)
        fault = "file is empty" if is_empty else f"not readable as audio ({reason})"
        raise AudioError(f"{path}: {fault}; soundfile reads WAV, FLAC, MP3 and OGG") from error


def _seek(path: str | Path, file: soundfile.SoundFile, part: AudioPart) -> int:
    """Go to the first sample of a part of a file, and return how many it has according to the header."""
    if part.seconds is None:
        return file.frames  # also for codecs that cannot seek, such as GSM 6.10
    first, stop = (round(second * file.samplerate) for second in part.seconds)
    if first >= stop:
        raise AudioError(f"{path}: a part must end after its start")
    if file.seekable():
        file.seek(min(first, file.frames))
    else:
        file.read(first)
    return stop - first


def _checked(path: str | Path, wave: np.ndarray) -> np.ndarray:
    if not np.isfinite(wave).all():
        count = int((~np.isfinite(wave)).sum())
        raise AudioError(f"{path}: {count} of {len(wave)} samples are NaN or infinite; write the file again")
    return np.ascontiguousarray(wave, dtype=np.float32)


def _check_length(path: str | Path, file: soundfile.SoundFile, part: AudioPart, num_samples: int) -> None:
    if part.seconds:
        missing = part.seconds[1] - part.seconds[0] - num_samples / file.samplerate
        if not num_samples or missing > _LENGTH_TOLERANCE_SECONDS:
            raise AudioError(f"{path}: the recording ends {missing:.2f} s before this part of it")
        return
    if not num_samples:
        raise AudioError(f"{path}: file has no samples")
    expected = file.frames
    data_size = _WRONG_DATA_SIZE.search(file.extra_info)  # libsndfile reads such a file without an error
    if data_size and 0 < int(data_size[1]) < _UNKNOWN_DATA_SIZE:
        expected = num_samples * int(data_size[1]) // int(data_size[2])
    if expected - num_samples > _LENGTH_TOLERANCE_SECONDS * file.samplerate:
        stated, found = expected / file.samplerate, num_samples / file.samplerate
        raise AudioError(f"{path}: truncated, its header states {stated:.2f} s and it holds {found:.2f} s")

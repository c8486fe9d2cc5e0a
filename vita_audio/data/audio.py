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
        samples = _read_stretch(path, file, *part.seconds) if part.seconds else _read_all(path, file)
        file_rate = file.samplerate
    wave = samples[:, 0] if channel == "first" else samples.mean(axis=1)  # samples: (samples, channels)
    if not np.isfinite(wave).all():
        count = int((~np.isfinite(wave)).sum())
        raise AudioError(f"{path}: {count} of {len(wave)} samples are NaN or infinite; write the file again")
    return resample(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)), file_rate, sample_rate)


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


@contextmanager
def open_audio(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open audio to read it block by block. Raises: as `stated_seconds`, also for errors while it is read."""
    with _opened(path, AudioPart.parse(path)) as file:
        yield file


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


def _read_all(path: str | Path, file: soundfile.SoundFile) -> np.ndarray:
    """Return the samples of a file, (samples, channels) float32."""
    # Some codecs, such as GSM 6.10, cannot seek; soundfile then needs the number of frames.
    samples = file.read(-1 if file.seekable() else file.frames, dtype="float32", always_2d=True)
    _check_length(path, file, len(samples))
    return samples


def _read_stretch(path: str | Path, file: soundfile.SoundFile, start: float, end: float) -> np.ndarray:
    """Return the samples between two seconds of a file, (samples, channels) float32."""
    first, stop = round(start * file.samplerate), round(end * file.samplerate)
    if not 0 <= first < stop:
        raise AudioError(f"{path}: a part must end after its start, got {start} to {end}")
    if file.seekable():
        file.seek(min(first, file.frames))
    else:
        file.read(first)
    samples = file.read(stop - first, dtype="float32", always_2d=True)
    missing = stop - first - len(samples)
    if not len(samples) or missing > _LENGTH_TOLERANCE_SECONDS * file.samplerate:
        raise AudioError(f"{path}: the recording ends {missing / file.samplerate:.2f} s before this part of it")
    return samples


def _check_length(path: str | Path, file: soundfile.SoundFile, num_samples: int) -> None:
    if not num_samples:
        raise AudioError(f"{path}: file has no samples")
    expected = file.frames
    data_size = _WRONG_DATA_SIZE.search(file.extra_info)  # libsndfile reads such a file without an error
    if data_size and 0 < int(data_size[1]) < _UNKNOWN_DATA_SIZE:
        expected = num_samples * int(data_size[1]) // int(data_size[2])
    if expected - num_samples > _LENGTH_TOLERANCE_SECONDS * file.samplerate:
        stated, found = expected / file.samplerate, num_samples / file.samplerate
        raise AudioError(f"{path}: truncated, its header states {stated:.2f} s and it holds {found:.2f} s")

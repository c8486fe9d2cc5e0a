"""Read audio files: any container that soundfile knows, at any rate, as a mono wave at the requested rate."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from vita_audio.resample import resample

Channel = Literal["first", "mean"]

# Log message of libsndfile if the data size in a header (WAV, W64, AIFF, AU) differs from the real one.
_WRONG_DATA_SIZE = re.compile(r"^ *(?:data|riff|SSND|Data Size) +: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_DATA_SIZE = 0x7FFFF000  # the header of a file written to a pipe states 0 or at least this size
_UNKNOWN_FRAMES = 2**62  # libsndfile reports more for FLAC from a pipe, which soundfile cannot read
_LENGTH_TOLERANCE_SECONDS = 0.1  # lossy containers state their length only approximately


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and the reason."""


def load_audio(path: str | Path, sample_rate: int, *, channel: Channel = "first") -> Tensor:
    """Read an audio file as a mono wave.

    Args:
        sample_rate: Requested rate, Hz.
        channel: `"first"` for the first channel (discrete codecs), `"mean"` for the average (SenseVoice features).
    Returns: (samples,), float32, full scale is [-1, 1].
    Raises: FileNotFoundError, or AudioError for a file that is empty, truncated, not audio, or holds NaN or infinity.
    """
    if channel not in ("first", "mean"):
        raise ValueError(f'channel must be "first" or "mean", got {channel!r}')
    with _opened(Path(path)) as file:
        # Some codecs, such as GSM 6.10, cannot seek; soundfile then needs the number of frames.
        samples = file.read(-1 if file.seekable() else file.frames, dtype="float32", always_2d=True)
        _check_length(path, file, len(samples))
        file_rate = file.samplerate
    wave = samples[:, 0] if channel == "first" else samples.mean(axis=1)  # samples: (samples, channels)
    if not np.isfinite(wave).all():
        count = int((~np.isfinite(wave)).sum())
        raise AudioError(f"{path}: {count} of {len(wave)} samples are NaN or infinite; write the file again")
    return resample(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)), file_rate, sample_rate)


def stated_seconds(path: str | Path) -> float:
    """Return the duration of an audio file according to its header, without reading the samples.

    Raises: FileNotFoundError, or AudioError for a file that is empty or not audio.
    """
    with _opened(Path(path)) as file:
        return file.frames / file.samplerate


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file; an exception while it is opened or read becomes an AudioError."""
    if os.path.isdir(path):
        raise AudioError(f"{path}: a folder, not an audio file")
    if not os.path.isfile(path):  # unlike Path.is_file, also accepts names that are too long or contain NUL
        raise FileNotFoundError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames >= _UNKNOWN_FRAMES:
                raise AudioError(f"{path}: its header does not state the length; write the file again, as WAV")
            yield file
    except AudioError:
        raise
    except Exception as error:  # LibsndfileError, but also TypeError for .raw, ValueError, UnicodeDecodeError, ...
        reason = getattr(error, "error_string", error)
        fault = "file is empty" if os.path.getsize(path) == 0 else f"not readable as audio ({reason})"
        raise AudioError(f"{path}: {fault}; soundfile reads WAV, FLAC, MP3 and OGG") from error


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

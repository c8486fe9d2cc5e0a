"""Features of SenseVoice's speech encoder: log-mel filter banks, stacked and normalised, and how many rows they have.

Follows the WavFrontend of FunASR (arXiv 2407.04051), but adds no dither, so that features do not differ between runs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from vita_audio.constants import INPUT_RATE
from vita_audio.files.atomic import write_text
from vita_audio.files.checkpoint import check_whole, find_checkpoint
from vita_audio.files.tensors import find_file

QUERIES = (0, 1, 2, 15)  # rows of the encoder's query table put before the features: any language, event, emotion, text
CMVN_FILE = "am.mvn"  # mean and variance of the features, in Kaldi's form

NUM_MELS = 80
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
STACKED_FRAMES = 7  # in a row of features
STACK_STEP = 6  # frames between two rows
ROWS_PER_SECOND = INPUT_RATE / (HOP * STACK_STEP)
FEATURE_SIZE = NUM_MELS * STACKED_FRAMES


def num_encoder_rows(num_samples: int) -> int:
    """Return the number of rows that the encoder reads for a wave at 16 kHz: the queries and the feature rows."""
    num_frames = 1 + max(0, num_samples - WINDOW) // HOP
    return len(QUERIES) - (-num_frames // STACK_STEP)


def fbank(wave: Tensor, window_function: Callable[..., Tensor] = torch.hamming_window) -> Tensor:
    """Return Kaldi's log-mel filter banks, (frames, 80), float32.

    Equals `torchaudio.compliance.kaldi.fbank` with 80 bins from 20 Hz up and no energy. A wave shorter than a window
    (25 ms) becomes one frame of its own length, as in FunASR's WavFrontend.

    Args:
        wave: (samples,), float32, 16 kHz, at least two samples.
        window_function: Makes the window, given its length and `periodic=False`.
    """
    window = min(WINDOW, len(wave))
    frames = wave.unfold(0, window, HOP)  # (frames, window)
    frames = frames - frames.mean(dim=1, keepdim=True)
    frames = frames - 0.97 * F.pad(frames, (1, 0), mode="replicate")[:, :-1]
    num_points = 1 << (window - 1).bit_length()
    spectrum = torch.fft.rfft(frames * window_function(window, periodic=False), num_points)
    mels = spectrum.abs().square() @ _mel_filters(num_points // 2 + 1)
    return mels.clamp(min=torch.finfo(torch.float32).eps).log()


@lru_cache
def _mel_filters(num_bins: int) -> Tensor:
    with warnings.catch_warnings():  # a short wave has fewer bins than filters, and some filters are zero
        warnings.simplefilter("ignore")
        filters = mel_filter_bank(
            num_bins, NUM_MELS, 20.0, INPUT_RATE / 2, INPUT_RATE, mel_scale="kaldi", triangularize_in_mel_space=True
        )
    return torch.from_numpy(filters).float()  # (bins, mels)


def stack_frames(frames: Tensor) -> Tensor:
    """Join seven frames into a row at every sixth frame, repeating the ends: (frames, mels) to (rows, 7 * mels)."""
    num_rows = -(-len(frames) // STACK_STEP)
    first = torch.arange(num_rows)[:, None] * STACK_STEP - STACKED_FRAMES // 2
    places = (first + torch.arange(STACKED_FRAMES)).clamp(0, len(frames) - 1)  # (rows, 7)
    return frames[places].flatten(1)


class SenseVoiceFrontEnd:
    """Compute the encoder's input from a wave: filter banks, stacked and normalised."""

    sample_rate = INPUT_RATE

    def __init__(self, shift: Tensor, scale: Tensor):
        """Set the normalisation `(x + shift) * scale`; both are (560,), float32.

        Raises: ValueError for other shapes.
        """
        if shift.shape != (FEATURE_SIZE,) or scale.shape != (FEATURE_SIZE,):
            shapes = f"{tuple(shift.shape)} and {tuple(scale.shape)}"
            raise ValueError(f"shift and scale must have {FEATURE_SIZE} values, got shapes {shapes}")
        self.shift, self.scale = shift, scale

    @classmethod
    def find(
        cls, checkpoint: str | Path | None, audio_model: str | Path | None = None, *, offline: bool = False
    ) -> SenseVoiceFrontEnd:
        """Load the front end of a language model with continuous speech input.

        Args:
            checkpoint: Folder or hub name of the language model; our checkpoints hold `am.mvn`, the released ones do
                not.
            audio_model: Folder or hub name of a SenseVoiceSmall; takes precedence over the checkpoint.
            offline: Use only files that were downloaded earlier.
        Raises: FileNotFoundError if neither has `am.mvn`; ValueError for a damaged file.
        """
        source = audio_model or checkpoint
        folder = source and find_checkpoint(source, offline=offline)
        if folder is None or not (folder / CMVN_FILE).is_file():
            raise FileNotFoundError(
                f"the model takes speech as continuous features, and their normalisation {CMVN_FILE} is not in "
                f"{source}; give the folder of a SenseVoiceSmall as audio model"
            )
        return cls.from_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SenseVoiceFrontEnd:
        """Read `am.mvn` from the folder of a SenseVoiceSmall or of one of our checkpoints.

        Raises: FileNotFoundError; ValueError for a damaged file.
        """
        path = find_file(Path(folder), CMVN_FILE)
        check_whole(path)
        text = path.read_text(encoding="utf-8")
        try:
            return cls(_read_vector(text, "AddShift"), _read_vector(text, "Rescale"))
        except ValueError as error:
            raise ValueError(f"{path} is not the normalisation of SenseVoice features: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `am.mvn` in Kaldi's form."""
        size = f"{FEATURE_SIZE} {FEATURE_SIZE}"
        lines = ["<Nnet>", f"<Splice> {size}", "[ 0 ]"]
        for name, vector in (("AddShift", self.shift), ("Rescale", self.scale)):
            values = " ".join(f"{value:.9g}" for value in vector.tolist())
            lines += [f"<{name}> {size}", f"<LearnRateCoef> 0 [ {values} ]"]
        write_text(Path(folder) / CMVN_FILE, "\n".join([*lines, "</Nnet>", ""]))

    def __call__(self, wave: Tensor) -> Tensor:
        """Map a wave, (samples,) float32 in [-1, 1] at 16 kHz, to its features, (rows, 560) float32."""
        wave = F.pad(wave, (0, max(0, 2 - len(wave))))
        return (stack_frames(fbank(wave * 32768)) + self.shift) * self.scale


def _read_vector(text: str, name: str) -> Tensor:
    match = re.search(rf"<{name}>[^\[]*\[([^\]]*)\]", text)
    if match is None:
        raise ValueError(f"it has no <{name}>")
    return torch.tensor([float(value) for value in match[1].split()])

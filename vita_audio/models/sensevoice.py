"""SenseVoice: the speech encoder of the Plus models, and the features it reads.

The encoder is FunASR's SenseVoiceSmall (arXiv 2407.04051): self-attention whose values also pass a depth-wise
convolution over time, the FSMN memory. Module names are those of its `model.pt`. Two things differ from that code on
purpose: positions are computed in float32 whatever the weights are (in bfloat16 those above 256 coincide), and there is
no dropout, because the stages keep the encoder frozen.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.audio_utils import mel_filter_bank

from vita_audio.constants import INPUT_RATE
from vita_audio.files.tensors import find_file, read_tensors

QUERIES = (0, 1, 2, 15)  # rows of the query table put before the features: any language, event, emotion, plain text
WEIGHT_FILES = ("model.safetensors", "model.pt")
CMVN_FILE = "am.mvn"

NUM_MELS = 80
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
STACKED_FRAMES = 7  # in a row of features
STACK_STEP = 6  # frames between two rows
ROWS_PER_SECOND = INPUT_RATE / (HOP * STACK_STEP)
FEATURE_SIZE = NUM_MELS * STACKED_FRAMES


@dataclass(frozen=True)
class SenseVoiceConfig:
    """Sizes of the encoder; the defaults are those of SenseVoiceSmall, names are those of its `config.yaml`.

    Args:
        input_size: Width of the features.
        num_blocks: Layers of the first part, the one from `input_size` to `output_size` included.
        tp_blocks: Layers of the second part.
        kernel_size: Of the FSMN memory, odd.
        num_queries: Rows of the query table.
        vocab_size: Of the CTC head, which the language model does not use.
    """

    input_size: int = FEATURE_SIZE
    output_size: int = 512
    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 50
    tp_blocks: int = 20
    kernel_size: int = 11
    num_queries: int = 16
    vocab_size: int = 25055

    def __post_init__(self):
        wrong = {field.name: getattr(self, field.name) for field in fields(self)}
        wrong = {name: value for name, value in wrong.items() if not isinstance(value, int) or value < 1}
        if wrong:
            raise ValueError(f"sizes of the speech encoder must be positive integers, got {wrong}")
        if self.output_size % self.attention_heads or self.kernel_size % 2 == 0 or self.num_queries <= max(QUERIES):
            raise ValueError(
                "a speech encoder needs output_size a multiple of attention_heads, an odd kernel_size and "
                f"num_queries above {max(QUERIES)}, got {self}"
            )


class SANMAttention(nn.Module):
    """Self-attention plus an FSMN memory: a depth-wise convolution of the values, and the values themselves."""

    def __init__(self, input_size: int, config: SenseVoiceConfig):
        super().__init__()
        size = config.output_size
        self.num_heads = config.attention_heads
        self.linear_q_k_v = nn.Linear(input_size, 3 * size)
        self.linear_out = nn.Linear(size, size)
        self.fsmn_block = nn.Conv1d(size, size, config.kernel_size, padding="same", groups=size, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, time, input) to (batch, time, output); `mask`, (batch, time), is False for padding."""
        query, key, value = self.linear_q_k_v(x).chunk(3, dim=-1)
        value = value * mask[..., None]
        memory = (self.fsmn_block(value.transpose(1, 2)).transpose(1, 2) + value) * mask[..., None]
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        context = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None])  # (batch, heads, time, size)
        return self.linear_out(context.transpose(1, 2).flatten(2)) + memory


class FeedForward(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.w_1 = nn.Linear(config.output_size, config.linear_units)
        self.w_2 = nn.Linear(config.linear_units, config.output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.w_1(x).relu())


class SenseVoiceLayer(nn.Module):
    """Attention and feed-forward behind norms; the first layer of the encoder changes the width, so has no residual."""

    def __init__(self, input_size: int, config: SenseVoiceConfig):
        super().__init__()
        self.self_attn = SANMAttention(input_size, config)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.LayerNorm(input_size)
        self.norm2 = nn.LayerNorm(config.output_size)
        self.has_residual = input_size == config.output_size

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        attended = self.self_attn(self.norm1(x), mask)
        x = x + attended if self.has_residual else attended
        return x + self.feed_forward(self.norm2(x))


class SenseVoiceEncoder(nn.Module):
    """Two stacks of layers, each with a norm behind it."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        size = config.output_size
        self.scale = math.sqrt(size)
        self.encoders0 = nn.ModuleList([SenseVoiceLayer(config.input_size, config)])
        self.encoders = nn.ModuleList(SenseVoiceLayer(size, config) for _ in range(config.num_blocks - 1))
        self.tp_encoders = nn.ModuleList(SenseVoiceLayer(size, config) for _ in range(config.tp_blocks))
        self.after_norm = nn.LayerNorm(size)
        self.tp_norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encode features.

        Args:
            x: (batch, time, input), padded on the right.
            lengths: Rows of each, (batch,).
        Returns: (batch, time, output); what stands beyond the lengths is meaningless.
        """
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (batch, time)
        positions = sinusoidal_positions(x.shape[1], x.shape[2]).to(x.device)
        x = (x.float() * self.scale + positions).to(x.dtype)
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, mask)
        x = self.after_norm(x)
        for layer in self.tp_encoders:
            x = layer(x, mask)
        return self.tp_norm(x)


def sinusoidal_positions(length: int, size: int) -> Tensor:
    """Return the embeddings of positions 1, 2, ..., sines before cosines: (length, size), float32."""
    rates = torch.exp(torch.arange(size // 2) * -(math.log(10_000) / (size // 2 - 1)))
    angles = torch.arange(1, length + 1)[:, None] * rates  # (length, size / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class CTCHead(nn.Module):
    """SenseVoice's own output layer; part of the released weights, and not used here."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.ctc_lo = nn.Linear(config.output_size, config.vocab_size)


class SenseVoiceSmall(nn.Module):
    """Encoder, query table and CTC head, with the parameter names of the released `model.pt`."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.encoder = SenseVoiceEncoder(config)
        self.ctc = CTCHead(config)
        self.embed = nn.Embedding(config.num_queries, config.input_size)

    def forward(self, features: Sequence[Tensor], queries: Sequence[int] = QUERIES) -> list[Tensor]:
        """Encode several audios at once; the result does not depend on the company.

        Args:
            features: (rows, input) of each audio.
            queries: Rows of the query table to put before each.
        Returns: (queries + rows, output) of each audio.
        """
        table = self.embed.weight  # on the meta device where accelerate fetches weights for each call
        device = features[0].device if table.is_meta else table.device
        prefix = self.embed(torch.tensor(list(queries), device=device))  # (queries, input)
        rows = [torch.cat([prefix, audio.to(prefix)]) for audio in features]
        lengths = torch.tensor([len(row) for row in rows], device=prefix.device)
        encoded = self.encoder(pad_sequence(rows, batch_first=True), lengths)
        return [audio[: len(row)] for audio, row in zip(encoded, rows, strict=True)]


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read the weights of a SenseVoiceSmall folder, on the CPU; nothing in the file is executed.

    Raises: FileNotFoundError without a weight file, ValueError for one that cannot be read.
    """
    return read_tensors(find_file(Path(folder), *WEIGHT_FILES))


def num_feature_rows(num_samples: int) -> int:
    """Return how many rows of features a wave of so many samples at 16 kHz has."""
    num_frames = 1 + max(0, num_samples - WINDOW) // HOP
    return -(-num_frames // STACK_STEP)


def num_encoder_rows(num_samples: int) -> int:
    """Return how many places such a wave takes in the language model: its rows and the queries before them."""
    return num_feature_rows(num_samples) + len(QUERIES)


def fbank(wave: Tensor, dither: float = 0.0) -> Tensor:
    """Return Kaldi's log-mel filter banks, (frames, 80), float32.

    Equals `torchaudio.compliance.kaldi.fbank` with a hamming window, 80 bins from 20 Hz up, no energy. A wave that is
    shorter than a window (25 ms) is one frame of its own length, as in FunASR's WavFrontend.

    Args:
        wave: (samples,), float32 in [-1, 1], 16 kHz, at least two samples.
        dither: Standard deviation of noise added to each window, on the scale of 16-bit samples.
    """
    window = min(WINDOW, len(wave))
    frames = (wave * 32768).unfold(0, window, HOP)  # (frames, window)
    if dither:
        frames = frames + dither * torch.randn_like(frames)
    frames = frames - frames.mean(dim=1, keepdim=True)
    frames = frames - 0.97 * F.pad(frames, (1, 0), mode="replicate")[:, :-1]
    num_points = 1 << (window - 1).bit_length()
    spectrum = torch.fft.rfft(frames * torch.hamming_window(window, periodic=False), num_points)
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
    """Join seven frames to a row, every sixth frame: (frames, mels) to (rows, 7 mels); the ends are repeated."""
    num_rows = -(-len(frames) // STACK_STEP)
    first = torch.arange(num_rows)[:, None] * STACK_STEP - STACKED_FRAMES // 2
    places = (first + torch.arange(STACKED_FRAMES)).clamp(0, len(frames) - 1)  # (rows, 7)
    return frames[places].flatten(1)


class SenseVoiceFrontEnd:
    """From a wave to what the encoder reads: filter banks, stacked and normalised.

    Args:
        shift, scale: Of the normalisation `(x + shift) * scale`, (560,), float32.
        dither: As in `fbank`. The public front end adds 1.0 from the global generator, so that no run repeats another;
            here it is off unless asked for.
    """

    sample_rate = INPUT_RATE

    def __init__(self, shift: Tensor, scale: Tensor, *, dither: float = 0.0):
        if shift.shape != (FEATURE_SIZE,) or scale.shape != (FEATURE_SIZE,):
            shapes = f"{tuple(shift.shape)} and {tuple(scale.shape)}"
            raise ValueError(f"shift and scale must have {FEATURE_SIZE} values, got shapes {shapes}")
        if not dither >= 0:
            raise ValueError(f"dither must be 0 or more, got {dither}")
        self.shift, self.scale, self.dither = shift, scale, dither

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dither: float = 0.0) -> SenseVoiceFrontEnd:
        """Read `am.mvn` from a SenseVoiceSmall folder or from a checkpoint of ours.

        Raises: FileNotFoundError; ValueError for a file of another form.
        """
        path = Path(folder) / CMVN_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {CMVN_FILE} in {folder}; give the folder of a SenseVoiceSmall")
        text = path.read_text(encoding="utf-8")
        try:
            shift, scale = (_read_vector(text, name) for name in ("AddShift", "Rescale"))
            return cls(shift, scale, dither=dither)
        except ValueError as error:
            raise ValueError(f"{path} is not the normalisation of SenseVoice features: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `am.mvn`, in Kaldi's form."""
        size = f"{FEATURE_SIZE} {FEATURE_SIZE}"
        lines = ["<Nnet>", f"<Splice> {size}", "[ 0 ]"]
        for name, vector in (("AddShift", self.shift), ("Rescale", self.scale)):
            values = " ".join(f"{value:.9g}" for value in vector.tolist())
            lines += [f"<{name}> {size}", f"<LearnRateCoef> 0 [ {values} ]"]
        (Path(folder) / CMVN_FILE).write_text("\n".join([*lines, "</Nnet>", ""]), encoding="utf-8")

    def __call__(self, wave: Tensor) -> Tensor:
        """Return the features of a wave: (rows, 560), float32.

        Args:
            wave: (samples,), float32 in [-1, 1], 16 kHz.
        """
        wave = F.pad(wave, (0, max(0, 2 - len(wave))))
        return (stack_frames(fbank(wave, self.dither)) + self.shift) * self.scale


def _read_vector(text: str, name: str) -> Tensor:
    match = re.search(rf"<{name}>[^\[]*\[([^\]]*)\]", text)
    if match is None:
        raise ValueError(f"it has no <{name}>")
    return torch.tensor([float(value) for value in match[1].split()])

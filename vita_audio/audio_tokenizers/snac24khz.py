"""SNAC at 24 kHz: three codebooks at 12, 23 and 47 Hz, flattened to 82 codes per second.

The model is the public one (arXiv 2410.14411, package `snac`, weights `hubertsiuzdak/snac_24khz`). Codes are ordered as
in the public VITA-Audio tokenizer: a group has one coarse, two medium and four fine codes, and the codes of slot s
begin at 4096 * s. Waves of any length are encoded and decoded in pieces that include as much context as the
convolutions reach, and the decoder's noise is addressed by position, so pieces, streams and whole waves agree up to
rounding.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from vita_audio.files.checkpoint import read_json
from vita_audio.files.tensors import fill_module, read_tensors
from vita_audio.optional import require
from vita_audio.resample import RULE as RESAMPLING_RULE
from vita_audio.speech_decoder.streaming import FrameNoise

from .base import check_chunk_sizes, fingerprint
from .windowed import WindowedTokenizer, reach

NAME = "snac24khz"
CODEBOOK_SIZE = 4096
VQ_STRIDES = (4, 2, 1)  # strides of the coarse, medium and fine codes
LEVEL_SIZES = tuple(VQ_STRIDES[0] // stride for stride in VQ_STRIDES)  # number of codes of each level in a group
GROUP_SIZE = sum(LEVEL_SIZES)
GROUPS_PER_PIECE = 352  # 30 s
STREAM_CHUNKS = (7, 28)  # codes; a short first chunk starts early

_SLOT_OFFSETS = CODEBOOK_SIZE * torch.arange(GROUP_SIZE)


def flatten(levels: Sequence[Tensor]) -> list[int]:
    """Arrange the codes of n groups, coarse (1, n), medium (1, 2 n) and fine (1, 4 n), in one list of 7 n codes."""
    slots = torch.cat([level.reshape(-1, size) for level, size in zip(levels, LEVEL_SIZES, strict=True)], dim=1)
    return (slots.cpu() + _SLOT_OFFSETS).flatten().tolist()


def unflatten(codes: Sequence[int]) -> list[Tensor]:
    """Return the coarse, medium and fine codes of any list of codes; the inverse of `flatten`.

    As in the public tokenizer, an incomplete last group is completed with its last code, and a code that belongs to
    another slot is replaced by the nearest code of its own slot.
    """
    codes = list(codes)
    while len(codes) % GROUP_SIZE:
        codes.append(codes[-1] + CODEBOOK_SIZE)
    slots = (torch.tensor(codes, dtype=torch.long).reshape(-1, GROUP_SIZE) - _SLOT_OFFSETS).clamp(0, CODEBOOK_SIZE - 1)
    return [level.reshape(1, -1) for level in slots.split(LEVEL_SIZES, dim=1)]


class SNAC24kHzTokenizer(WindowedTokenizer):
    """A `snac.SNAC` model with three codebooks, in evaluation mode."""

    name = NAME
    released_as = "hubertsiuzdak/snac_24khz"
    has_one_folder = True
    vocab_size = GROUP_SIZE * CODEBOOK_SIZE
    codes_per_group = GROUP_SIZE
    codes_per_piece = GROUPS_PER_PIECE * GROUP_SIZE

    def __init__(self, model: nn.Module, *, seed: int = 42, stream_chunks: Sequence[int] = STREAM_CHUNKS):
        """Wrap a model.

        Args:
            seed: Seed for the decoder's noise; the same codes always give the same wave.
            stream_chunks: Codes in the first, second, ... chunk of a stream, in whole groups; the last size repeats.
        Raises: ValueError for another kind of SNAC.
        """
        kind = {"codebook_size": CODEBOOK_SIZE, "vq_strides": list(VQ_STRIDES), "attn_window_size": None}
        if unlike := {key: getattr(model, key) for key, value in kind.items() if getattr(model, key) != value}:
            raise ValueError(f"{NAME} must be a SNAC with {kind}, got {unlike}; take {self.released_as}")
        self.model = model.eval().requires_grad_(False)
        self.seed, self.stream_chunks = seed, check_chunk_sizes(stream_chunks)
        self.sample_rate = self.output_rate = model.sampling_rate
        self.samples_per_group = int(model.hop_length) * VQ_STRIDES[0]
        self.frame_rate = GROUP_SIZE * self.sample_rate / self.samples_per_group
        steps = max(reach(model.decoder.modules()), reach(reversed(list(model.encoder.modules()))))
        self.context_groups = math.ceil(steps / VQ_STRIDES[0])

    @classmethod
    def _load(cls, folder: Path, decoder_folder: Path | None, device: str, **options) -> SNAC24kHzTokenizer:
        snac = require("snac", purpose=f"the audio tokenizer {NAME}", install=f"'vita-audio[{NAME}]'")
        with torch.device("meta"):
            model = snac.SNAC(**read_json(folder / "config.json"))
        weights = folder / "pytorch_model.bin"
        fill_module(model, read_tensors(weights), weights, str(folder / "config.json"))
        return cls(model.to(device), **options)

    @cached_property
    def fingerprint(self) -> str:
        weights = {key: value for key, value in self.model.state_dict().items() if not key.startswith("decoder.")}
        return fingerprint(self.name, [RESAMPLING_RULE, self.model.encoder_rates], weights)

    @torch.inference_mode()
    def synthesize(self, levels: Sequence[Tensor], noises: Sequence[Tensor]) -> Tensor:
        """Decode the output of `unflatten` with noise (groups, values) for each stage: (samples,), on the CPU."""
        device = next(self.model.parameters()).device
        hidden = self.model.quantizer.from_codes([level.to(device) for level in levels])
        stages = iter(noises)
        for layer in _layers(self.model.decoder.model):
            if type(layer).__name__ == "NoiseBlock":
                hidden = hidden + next(stages).reshape(1, 1, -1).to(hidden) * layer.linear(hidden)
            else:
                hidden = layer(hidden)
        return hidden[0, 0].clamp(-1, 1).cpu()

    def _window_decoder(self, voice: None) -> Callable[[list[int], int], Tensor]:
        rates = accumulate(self.model.decoder_rates, operator.mul, initial=VQ_STRIDES[0])
        noises = [  # of each decoder stage, coarsest first, addressed by group
            FrameNoise(size, torch.Generator().manual_seed(self.seed + stage))
            for stage, size in enumerate(islice(rates, 1, None))
        ]

        def decode(codes: list[int], first: int) -> Tensor:
            levels = unflatten(codes)
            return self.synthesize(levels, [noise.read(first, first + levels[0].shape[1]) for noise in noises])

        return decode

    @torch.inference_mode()
    def _encode_one(self, wave: Tensor) -> list[int]:
        size, codes = self.samples_per_group, []
        num_groups = -(-len(wave) // size)
        wave = nn.functional.pad(wave, (0, num_groups * size - len(wave)))
        device = next(self.model.parameters()).device
        for start in range(0, num_groups, GROUPS_PER_PIECE):
            stop = min(start + GROUPS_PER_PIECE, num_groups)
            first = max(0, start - self.context_groups)
            piece = wave[first * size : (stop + self.context_groups) * size]
            piece_codes = flatten(self.model.encode(piece[None, None].to(device)))
            codes += piece_codes[(start - first) * GROUP_SIZE : (stop - first) * GROUP_SIZE]
        return codes


def _layers(block: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a decoder in order, including those inside its upsampling blocks."""
    for layer in block:
        yield from layer.block if type(layer).__name__ == "DecoderBlock" else [layer]

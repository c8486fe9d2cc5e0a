"""SenseVoice: the speech encoder of the Plus models. Its features are computed by `vita_audio.speech_features`.

The encoder is FunASR's SenseVoiceSmall (arXiv 2407.04051): self-attention whose values also pass through a depth-wise
convolution over time, the FSMN memory. Modules are named as in its `model.pt`. Two deliberate differences: positions
are computed in float32 for any dtype of the weights (in bfloat16, positions above 256 coincide), and there is no
dropout, because the training stages keep the encoder frozen.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.models.whisper.modeling_whisper import sinusoids

from vita_audio.files.tensors import find_file, read_tensors
from vita_audio.speech_features import FEATURE_SIZE, QUERIES

WEIGHT_FILES = ("model.safetensors", "model.pt")


@dataclass(frozen=True)
class SenseVoiceConfig:
    """Sizes of the encoder, named as in SenseVoiceSmall's `config.yaml`, with its values as defaults.

    Attributes:
        input_size: Width of the features.
        num_blocks: Layers of the first part, including the one from `input_size` to `output_size`.
        tp_blocks: Layers of the second part.
        kernel_size: Kernel size of the FSMN memory, odd.
        num_queries: Rows of the query table.
        vocab_size: Vocabulary of the CTC head, which the language model does not use.
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
        wrong = {name: value for name, value in asdict(self).items() if not isinstance(value, int) or value < 1}
        if wrong:
            raise ValueError(f"sizes of the speech encoder must be positive integers, got {wrong}")
        if self.output_size % self.attention_heads or self.kernel_size % 2 == 0 or self.num_queries <= max(QUERIES):
            raise ValueError(
                "a speech encoder needs output_size a multiple of attention_heads, an odd kernel_size and "
                f"num_queries above {max(QUERIES)}, got {self}"
            )


class SANMAttention(nn.Module):
    """Self-attention plus an FSMN memory: the values plus their depth-wise convolution."""

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


class SenseVoiceLayer(nn.Module):
    """Pre-norm attention and feed-forward; a layer that changes the width has no residual around its attention."""

    def __init__(self, input_size: int, config: SenseVoiceConfig):
        super().__init__()
        size, hidden_size = config.output_size, config.linear_units
        self.self_attn = SANMAttention(input_size, config)
        self.feed_forward = nn.Sequential(
            OrderedDict(w_1=nn.Linear(size, hidden_size), relu=nn.ReLU(), w_2=nn.Linear(hidden_size, size))
        )
        self.norm1 = nn.LayerNorm(input_size)
        self.norm2 = nn.LayerNorm(size)
        self.has_residual = input_size == size

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        attended = self.self_attn(self.norm1(x), mask)
        x = x + attended if self.has_residual else attended
        return x + self.feed_forward(self.norm2(x))


class SenseVoiceEncoder(nn.Module):
    """Two stacks of layers, each followed by a norm."""

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
            lengths: Number of rows of each item, (batch,).
        Returns: (batch, time, output); rows beyond an item's length are undefined.
        """
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (batch, time)
        positions = sinusoids(x.shape[1] + 1, x.shape[2])[1:].to(x.device)  # of 1, 2, ..., (time, input), float32
        x = (x.float() * self.scale + positions).to(x.dtype)
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, mask)
        x = self.after_norm(x)
        for layer in self.tp_encoders:
            x = layer(x, mask)
        return self.tp_norm(x)


class SenseVoiceSmall(nn.Module):
    """Encoder, query table and CTC head (unused by the language model), with the released parameter names."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.encoder = SenseVoiceEncoder(config)
        self.ctc = nn.ModuleDict({"ctc_lo": nn.Linear(config.output_size, config.vocab_size)})
        self.embed = nn.Embedding(config.num_queries, config.input_size)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encode several audios at once; results do not depend on the other items in the batch.

        Args:
            features: Features of each audio, (rows, input).
        Returns: Encoded rows of each audio, (queries + rows, output).
        """
        table = self.embed.weight  # on the meta device if accelerate loads weights for each call
        device = features[0].device if table.is_meta else table.device
        prefix = self.embed(torch.tensor(QUERIES, device=device))  # (queries, input)
        rows = [torch.cat([prefix, audio.to(prefix)]) for audio in features]
        lengths = torch.tensor([len(row) for row in rows], device=prefix.device)
        encoded = self.encoder(pad_sequence(rows, batch_first=True), lengths)
        return [audio[: len(row)] for audio, row in zip(encoded, rows, strict=True)]


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read the weights of a SenseVoiceSmall folder on the CPU, without executing anything in the file.

    Raises: FileNotFoundError without a weight file, ValueError for one that cannot be read.
    """
    return read_tensors(find_file(Path(folder), *WEIGHT_FILES))

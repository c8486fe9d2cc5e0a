"""Encoder of audio codes: pre-norm transformer with relative positions and block-causal attention.

Relative positions follow Transformer-XL (Dai et al. 2019) as in ESPnet; parameter names are those of the released flow
(`encoder.*` in GLM-4-Voice's `flow.pt`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig
from .layers import block_causal_mask, named


def relative_positions(num_positions: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return sinusoids of the distances num_positions - 1 to 1 - num_positions, (2 * num_positions - 1, size)."""
    distance = torch.arange(num_positions - 1, -num_positions, -1, device=device, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, size, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / size))
    angle = distance[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def _shift_relative(scores: Tensor) -> Tensor:
    """Convert scores by distance (..., time, 2 * time - 1) to scores by key (..., time, time)."""
    *batch, num_positions, num_distances = scores.shape
    padded = F.pad(scores, (1, 0)).reshape(*batch, num_distances + 1, num_positions)
    return padded[..., 1:, :].reshape(*batch, num_positions, num_distances)[..., :num_positions]


class RelativeAttention(nn.Module):
    """Multi-head attention with a learned bias for content (u) and for position (v)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        size, heads = config.output_size, config.attention_heads
        self.num_heads = heads
        self.dropout_rate = config.attention_dropout_rate
        self.linear_q = nn.Linear(size, size)
        self.linear_k = nn.Linear(size, size)
        self.linear_v = nn.Linear(size, size)
        self.linear_out = nn.Linear(size, size)
        self.linear_pos = nn.Linear(size, size, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, size // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, size // heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Attend over x, (batch, time, size).

        Args:
            positions: From `relative_positions`, (2 * time - 1, size).
            mask: (batch or 1, 1, time, time) bool, true where a query sees a key.
        """
        query, key, value = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )  # (batch, heads, time, head size)
        distance_keys = self.linear_pos(positions).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0)
        by_distance = (query + self.pos_bias_v[:, None].to(query.dtype)) @ distance_keys
        bias = _shift_relative(by_distance) / math.sqrt(query.shape[-1])
        bias = bias.masked_fill(~mask, float("-inf"))
        attended = F.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None].to(query.dtype),
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.dropout_rate if self.training else 0.0,
        )
        return self.linear_out(attended.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.self_attn = RelativeAttention(config)
        self.feed_forward = named(
            w_1=nn.Linear(config.output_size, config.linear_units),
            activation=nn.SiLU(),
            dropout=nn.Dropout(config.dropout_rate),
            w_2=nn.Linear(config.linear_units, config.output_size),
        )
        self.norm_mha = nn.LayerNorm(config.output_size)
        self.norm_ff = nn.LayerNorm(config.output_size)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, mask))
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))


def input_projection(config: EncoderConfig) -> nn.Sequential:
    """Return the layers that bring the input of an encoder to its size."""
    linear, norm = nn.Linear(config.input_size, config.output_size), nn.LayerNorm(config.output_size)
    return named(out=nn.Sequential(linear, norm, nn.Dropout(config.dropout_rate)))


def run_layers(
    layers: nn.ModuleList,
    x: Tensor,
    block_size: int,
    mask: Tensor | None = None,
    dropout: nn.Module | None = None,
) -> Tensor:
    """Run encoder layers over (batch, time, size), whose queries see all earlier positions and their own block.

    Args:
        mask: (batch, 1, time) bool, true where valid; None when nothing is padded.
        dropout: Applied to the relative positions.
    """
    num_positions = x.shape[1]
    positions = relative_positions(num_positions, x.shape[2], x.device)
    positions = positions if dropout is None else dropout(positions)
    visible = block_causal_mask(num_positions, block_size, x.device)[None, None]
    visible = visible if mask is None else visible & mask[:, None]
    for layer in layers:
        x = layer(x, positions, visible)
    return x


class BlockConformerEncoder(nn.Module):
    """Encoder whose queries see all earlier positions and their own block."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embed = input_projection(config)
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size)
        self.positional_dropout = nn.Dropout(config.positional_dropout_rate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode (batch, time, input_size) to (batch, time, output_size); `mask` (batch, 1, time), true where valid."""
        x = self.positional_dropout(self.embed(x) * math.sqrt(self.config.output_size))
        return self.after_norm(run_layers(self.encoders, x, self.config.block_size, mask, self.positional_dropout))

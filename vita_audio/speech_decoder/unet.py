"""One-dimensional UNet that estimates the velocity of the flow.

Residual convolution blocks and full self-attention at two time scales, as in Matcha-TTS (Mehta et al. 2024) and
CosyVoice; parameter names are those of the released flow (`decoder.estimator.*`). Deliberate difference: attention and
normalisation exclude padded positions, so that a padded batch equals single runs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EstimatorConfig
from .layers import MaskedGroupNorm, apply_mask, named


def time_sinusoids(t: Tensor, size: int) -> Tensor:
    """Return sines, then cosines, of 1000 t for flow times in [0, 1]: (batch,) -> (batch, size)."""
    half = size // 2
    rate = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angle = 1000.0 * t.float()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, 3, padding=1), MaskedGroupNorm(8, out_channels), nn.Mish()
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        conv, norm, activation = self.block
        return apply_mask(activation(norm(conv(apply_mask(x, mask)), mask)), mask)


class ResnetBlock(nn.Module):
    """Two convolution blocks with the flow time added between them, and a residual."""

    def __init__(self, in_channels: int, out_channels: int, time_size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_size, out_channels))
        self.block1 = ConvBlock(in_channels, out_channels)
        self.block2 = ConvBlock(out_channels, out_channels)
        self.res_conv = nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None, time: Tensor) -> Tensor:
        hidden = self.block1(x, mask) + self.mlp(time)[..., None]
        return self.block2(hidden, mask) + self.res_conv(apply_mask(x, mask))


class Attention(nn.Module):
    """Full self-attention; queries, keys and values without bias."""

    def __init__(self, size: int, num_heads: int, head_size: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(size, num_heads * head_size, bias=False)
        self.to_k = nn.Linear(size, num_heads * head_size, bias=False)
        self.to_v = nn.Linear(size, num_heads * head_size, bias=False)
        self.to_out = nn.Sequential(nn.Linear(num_heads * head_size, size), nn.Dropout(dropout))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        visible = None if mask is None else mask[:, None]  # (batch, 1, 1, time)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward over (batch, time, size)."""

    def __init__(self, size: int, config: EstimatorConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(size)
        self.attn1 = Attention(size, config.num_heads, config.attention_head_dim, config.dropout)
        self.norm3 = nn.LayerNorm(size)
        widen = named(proj=nn.Linear(size, 4 * size), activation=nn.GELU())
        self.ff = named(net=nn.Sequential(widen, nn.Dropout(config.dropout), nn.Linear(4 * size, size)))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), mask)
        return x + self.ff(self.norm3(x))


class ConditionalDecoder(nn.Module):
    """The UNet: estimates the velocity at a point of the flow, given prior, speaker and prompt."""

    def __init__(self, config: EstimatorConfig):
        super().__init__()
        self.config = config
        channels = config.channels
        time_size = 4 * channels[0]
        self.time_mlp = named(
            linear_1=nn.Linear(config.in_channels, time_size),
            activation=nn.SiLU(),
            linear_2=nn.Linear(time_size, time_size),
        )

        def blocks(in_channels: int, out_channels: int) -> list[nn.Module]:
            transformers = nn.ModuleList(TransformerBlock(out_channels, config) for _ in range(config.n_blocks))
            return [ResnetBlock(in_channels, out_channels, time_size), transformers]

        self.down_blocks = nn.ModuleList()
        for index, size in enumerate(channels):
            in_channels = config.in_channels if index == 0 else channels[index - 1]
            is_last = index == len(channels) - 1  # otherwise the length is halved: T -> ceil(T / 2)
            convolution = nn.Conv1d(size, size, 3, stride=1 if is_last else 2, padding=1)
            resample = convolution if is_last else named(conv=convolution)
            self.down_blocks.append(nn.ModuleList([*blocks(in_channels, size), resample]))
        self.mid_blocks = nn.ModuleList(
            nn.ModuleList(blocks(channels[-1], channels[-1])) for _ in range(config.num_mid_blocks)
        )
        self.up_blocks = nn.ModuleList()
        for index, size in reversed(list(enumerate(channels))):
            out_channels = channels[max(index - 1, 0)]
            if index == 0:
                resample = nn.Conv1d(out_channels, out_channels, 3, padding=1)
            else:
                resample = named(conv=nn.ConvTranspose1d(out_channels, out_channels, 4, stride=2, padding=1))
            self.up_blocks.append(nn.ModuleList([*blocks(2 * size, out_channels), resample]))
        self.final_block = ConvBlock(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], config.out_channels, 1)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        mu: Tensor,
        t: Tensor,
        spks: Tensor,
        cond: Tensor,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity at `x`.

        Args:
            x: Point of the flow, (batch, bands, frames).
            mask: (batch, 1, frames) bool, true where valid; None when nothing is padded.
            mu: Prior from the codes, like `x`.
            t: Flow time in [0, 1], (batch,).
            spks: Speaker vector, (batch, bands).
            cond: Mel of the prompt in its frames and zero elsewhere, like `x`.
            visible: Attention mask, (1, frames, frames) bool, used by the attention in place of `mask`; only for a UNet
                of one scale.
        Returns: (batch, bands, frames), zero where padded.
        """
        time = self.time_mlp(time_sinusoids(t, self.config.in_channels))
        hidden = torch.cat([x, mu, spks[..., None].expand(-1, -1, x.shape[-1]), cond], dim=1)

        def run(resnet: ResnetBlock, transformers: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
            x = resnet(x, mask, time).transpose(1, 2)  # (batch, frames, channels)
            for block in transformers:
                x = block(x, mask if visible is None else visible)
            return x.transpose(1, 2)

        masks, skips = [mask], []
        for resnet, transformers, resample in self.down_blocks:
            hidden = run(resnet, transformers, hidden, masks[-1])
            skips.append(hidden)
            hidden = resample(apply_mask(hidden, masks[-1]))
            halved = not isinstance(resample, nn.Conv1d) and masks[-1] is not None
            masks.append(masks[-1][..., ::2] if halved else masks[-1])
        masks.pop()
        for resnet, transformers in self.mid_blocks:
            hidden = run(resnet, transformers, hidden, masks[-1])
        for resnet, transformers, resample in self.up_blocks:
            mask_up, skip = masks.pop(), skips.pop()
            hidden = torch.cat([hidden[..., : skip.shape[-1]], skip], dim=1)
            hidden = run(resnet, transformers, hidden, mask_up)
            hidden = resample(apply_mask(hidden, mask_up))
        return apply_mask(self.final_proj(self.final_block(hidden, mask)), mask)

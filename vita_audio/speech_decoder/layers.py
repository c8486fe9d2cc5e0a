"""Layers and masks that several modules share; padded positions are ignored, so a padded batch equals single runs."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def named(**layers: nn.Module) -> nn.Sequential:
    """Return the layers in sequence, whose parameters have the released names."""
    return nn.Sequential(OrderedDict(layers))


class CausalConv1d(nn.Conv1d):
    """Causal convolution: pads `kernel_size - 1` zeros in front."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


def block_causal_mask(num_positions: int, block_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (time, time) bool, true where query i sees key j: j is not later than i, or in the same block."""
    block = torch.arange(num_positions, device=device) // block_size
    return block[None, :] <= block[:, None]


def length_mask(lengths: Tensor, size: int) -> Tensor | None:
    """Return a mask (batch, 1, size) bool, true where valid, for lengths (batch,); None if every row is full."""
    mask = torch.arange(size, device=lengths.device) < lengths[:, None]
    return None if bool(mask.all()) else mask[:, None]


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the padded positions of (batch, channels, time) to zero."""
    return x if mask is None else x * mask.to(x.dtype)


class MaskedGroupNorm(nn.GroupNorm):
    """GroupNorm over (batch, channels, time) whose statistics exclude padded positions."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(x)
        grouped = x.float().unflatten(1, (self.num_groups, -1))  # (batch, groups, channels per group, time)
        weight = mask[:, :, None].float()
        count = weight.sum(dim=3, keepdim=True) * grouped.shape[2]
        mean = (grouped * weight).sum(dim=(2, 3), keepdim=True) / count
        variance = ((grouped - mean).square() * weight).sum(dim=(2, 3), keepdim=True) / count
        normed = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return normed * self.weight[:, None] + self.bias[:, None]


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of (batch, channels, time) over channels and valid positions, float32."""
    x = x.float()
    if mask is None:
        return x.mean()
    return (x * mask).sum() / (mask.sum() * x.shape[1])


def resample_nearest(x: Tensor, lengths: Tensor, new_lengths: Tensor, new_size: int) -> Tensor:
    """Stretch each row of (batch, time, channels) to its own new length by repeating the nearest earlier position.

    The rule is that of `torch.nn.functional.interpolate(mode="nearest")`, applied to each row. Positions beyond a row's
    new length repeat its last position.
    """
    scale = lengths.float() / new_lengths.float()
    index = (torch.arange(new_size, device=x.device) * scale[:, None]).floor().long()
    index = torch.minimum(index, lengths[:, None] - 1)
    return torch.gather(x, 1, index[..., None].expand(-1, -1, x.shape[2]))

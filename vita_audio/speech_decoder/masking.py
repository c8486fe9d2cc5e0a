"""Masks, and operations that ignore padded positions, so that a padded batch equals single runs."""

import torch
from torch import Tensor, nn


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

"""Rows that hold several documents, each with position ids from 0."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def is_packed(position_ids: Tensor, attention_mask: Tensor | None = None) -> bool:
    """Return whether a row of `position_ids`, (batch, time), holds several documents.

    Args:
        attention_mask: (batch, time), 0 for padding, which neither is nor ends a document.
    """
    if attention_mask is None:
        return bool((position_ids.diff(dim=-1) != 1).any())  # the rule by which transformers keeps documents apart
    is_token = attention_mask.bool()
    latest = position_ids.expand(is_token.shape).masked_fill(~is_token, -1).cummax(dim=-1).values
    return bool((is_token[:, 1:] & (position_ids[:, 1:] <= latest[:, :-1])).any())


def shift_within_documents(x: Tensor, shift: int, position_ids: Tensor, fill: int) -> Tensor:
    """Move `x` left by `shift` tokens without crossing a document boundary.

    Args:
        x: One value per token, (batch, time).
        position_ids: (batch or 1, time); restarts at 0 where a packed document begins.
        fill: Value where the document has no such token.
    Returns: (batch, time). `[A0 A1 A2 B0 B1]` shifted by 1 is `[A1 A2 fill B1 fill]`.
    """
    shift = min(shift, x.shape[1])
    same_document = F.pad(position_ids[:, shift:], (0, shift), value=-1) == position_ids + shift
    return F.pad(x[:, shift:], (0, shift), value=fill).masked_fill(~same_document, fill)

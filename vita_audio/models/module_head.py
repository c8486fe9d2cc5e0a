"""A head for MTP steps that scores only some tokens, such as audio codes, at a fraction of the work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ModuleHead:
    """The rows of a model's head that belong to some tokens; made once for a call of `generate`."""

    def __init__(self, head: nn.Linear, token_ids: Sequence[int], context: Sequence[int] | None = None):
        """Copy the rows.

        Args:
            context: Tokens after which no others than `token_ids` are expected; None: any.
        Raises: ValueError for ids outside the vocabulary, none at all, or a head that is kept on disk.
        """
        weight = head.weight.detach()  # once, since a quantised head restores it each time
        self._vocab_size = weight.shape[0]
        if not len(token_ids) or not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            raise ValueError(f"module_tokens must be ids below {self._vocab_size}, got {list(token_ids)[:5]}")
        if weight.is_meta:
            raise ValueError("module_tokens need the head in memory, got one on disk; leave module_tokens out")
        self._ids = torch.tensor(sorted(set(token_ids)), device=weight.device)
        self._context = None if context is None else torch.tensor(sorted(set(context)), device=self._ids.device)
        # (hidden, tokens): for a single row, a product with this layout is twice as fast on a CPU
        self._weight = weight[self._ids].t().contiguous()

    def fits(self, latest: Tensor) -> bool:
        """Tell whether all these tokens, (...), are context."""
        return self._context is None or bool(torch.isin(latest.to(self._context.device), self._context).all())

    def best_tokens(self, hidden_states: Tensor) -> Tensor:
        """Return the most likely tokens, (...,), without logits of the whole vocabulary."""
        return self._ids[self._score(hidden_states).argmax(dim=-1)]

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return logits, (..., vocabulary), -inf for all other tokens."""
        scored = self._score(hidden_states)
        logits = scored.new_full((*scored.shape[:-1], self._vocab_size), -torch.inf)
        logits[..., self._ids] = scored
        return logits

    def _score(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.to(self._weight.device) @ self._weight

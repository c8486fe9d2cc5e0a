"""Random codes in the input, which keep a small model from memorising recordings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodeNoise:
    """Replaces a part of the input audio codes by random codes, with torch's global generator.

    The Trainer applies it when a step begins, not when a batch is loaded: batches are loaded ahead, so a resumed run
    would draw others.

    Attributes:
        fraction: Fraction of the codes that are replaced.
        code_ids: Token ids of the audio codes.
    """

    fraction: float
    code_ids: range

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Return token ids with noise, (batch, time), int64."""
        is_code = (input_ids >= self.code_ids.start) & (input_ids < self.code_ids.stop)
        is_hit = is_code & (torch.rand(input_ids.shape, device=input_ids.device) < self.fraction)
        codes = torch.randint_like(input_ids, self.code_ids.start, self.code_ids.stop)
        return codes.where(is_hit, input_ids)

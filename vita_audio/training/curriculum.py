"""Sequence-length curriculum: training begins with short packs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

STEP_TOKENS = 8  # lengths grow by this


@dataclass(frozen=True)
class LengthCurriculum:
    """Packs are cut to a length that grows linearly from `start` to `end` in the first `ratio` of all steps.

    The tokens that are cut off are not learned in that step.
    Source: the sequence-length curriculum of DeepSpeed (arXiv 2108.06084), which cuts in the same way.
    """

    start: int
    end: int
    ratio: float

    def length(self, step: int, max_steps: int) -> int:
        """Return the tokens of a pack in `step`, counted from 0, of a run of `max_steps`."""
        progress = step / (self.ratio * max_steps)
        if progress >= 1:
            return self.end
        return self.start + int(progress * (self.end - self.start)) // STEP_TOKENS * STEP_TOKENS

    def cut(self, batch: dict[str, Any], step: int, max_steps: int) -> dict[str, Any]:
        """Return the first `length` tokens of every row of a batch from `PackCollator` without continuous audio.

        `samples` still names every document of the packs.
        """
        length = self.length(step, max_steps)
        return {name: values[:, :length] if isinstance(values, Tensor) else values for name, values in batch.items()}

"""Steps whose loss or gradient is not finite: reported with their samples, then skipped or the end of the run.

A loss above the limit is made NaN before the backward pass, so the gradient norm, which all processes share, tells each
of them that the step must not be applied. Weights and optimizer state stay as they were before the step.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vita_audio.errors import RunError
from vita_audio.training.run_folder import NONFINITE_FILE

MAX_SKIPPED = 10  # steps in a row, after which the data can hardly be the reason
_SAMPLES_SHOWN = 5

logger = logging.getLogger(__name__)


class NonfiniteGuard:
    """Decides whether the steps of a run may be applied."""

    def __init__(self, folder: Path, process: int, *, max_loss: float, skip: bool, scales_loss: bool = False):
        """Make a guard.

        Args:
            folder: Folder of the run; the main process adds the reports to `NONFINITE_FILE` in it.
            process: Rank of this process.
            max_loss: Mean loss of a batch above which it counts as not finite.
            skip: Continue after a bad step.
            scales_loss: Accept gradients that are not finite if all losses are good: the loss scaler of float16
                training leaves such steps out and lowers its factor.
        """
        self._folder, self._process, self._max_loss, self._skip = folder, process, max_loss, skip
        self._scales_loss = scales_loss
        self._batches: list[tuple[Tensor, Sequence[str]]] = []  # mean loss and samples of each batch of this step
        self._num_skipped = 0  # in a row

    def watch(self, loss: Tensor, mean_loss: Tensor, samples: Sequence[str]) -> Tensor:
        """Note a batch and return its loss, NaN if it is too high.

        Args:
            loss: Differentiable loss, scalar.
            mean_loss: The loss for each target, scalar.
            samples: File and line of each sample of the batch.
        """
        mean_loss = mean_loss.detach()
        self._batches.append((mean_loss, samples))
        return loss * torch.where(mean_loss <= self._max_loss, 1.0, math.nan)

    def accepts(self, step: int, grad_norm: Tensor | float) -> bool:
        """Return whether a step may be applied; every process must call this with the same gradient norm.

        Raises: RunError if the run must end.
        """
        batches, self._batches = self._batches, []
        if math.isfinite(grad_norm):
            self._num_skipped = 0
            return True
        rows = [
            {"step": step, "process": self._process, "loss": float(loss), "samples": list(samples)}
            for loss, samples in batches
        ]
        rows = gather_object(rows)
        bad = [row for row in rows if not row["loss"] <= self._max_loss]
        if self._scales_loss and not bad:
            return True
        self._num_skipped += 1
        rows = bad or rows
        message = _describe(step, rows)
        if self._process == 0:
            with (self._folder / NONFINITE_FILE).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row | {"loss": str(row["loss"])}) + "\n" for row in rows)
        if not self._skip:
            raise RunError(f"{message}; the weights are those before this step. --on_nonfinite skip leaves it out")
        if self._num_skipped >= MAX_SKIPPED:
            raise RunError(f"{message}; {MAX_SKIPPED} steps in a row were skipped. Lower the learning rate")
        if self._process == 0:
            logger.warning("%s; skipped", message)
        return False


def _describe(step: int, rows: Sequence[dict[str, Any]]) -> str:
    losses = ", ".join(f"{row['loss']:.4g} in process {row['process']}" for row in rows[:_SAMPLES_SHOWN])
    samples = [sample for row in rows for sample in row["samples"]]
    more = f" and {len(samples) - _SAMPLES_SHOWN} more" if len(samples) > _SAMPLES_SHOWN else ""
    return (
        f"step {step} has a gradient that is not finite, or too high a loss: {losses}; samples "
        f"{', '.join(samples[:_SAMPLES_SHOWN])}{more}, all in {NONFINITE_FILE}"
    )

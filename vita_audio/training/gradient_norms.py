"""Norm of the gradient of every part of the model, for the training log."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.trainer_callback import TrainerCallback

from vita_audio.training.parts import PARTS


class GradientNorms(TrainerCallback):
    """Measures gradients in the steps that are logged, when the optimiser is about to use them.

    Then DeepSpeed too has gradients of whole parameter groups, each process a slice. Every group of the optimiser names
    its `part`.
    """

    def __init__(self):
        self._squares: dict[str, torch.Tensor] = {}
        self._is_wanted = False
        self._hook: Any = None

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        while hasattr(optimizer, "optimizer"):  # wrapped by accelerate, and by DeepSpeed
            optimizer = optimizer.optimizer
        self._hook = optimizer.register_step_pre_hook(self._measure)

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    def on_step_begin(self, args, state, control, **kwargs):
        step = state.global_step + 1
        is_first = step == 1 and args.logging_first_step
        self._is_wanted = is_first or step % state.logging_steps == 0 or step >= state.max_steps
        self._squares = {}

    def _measure(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Add up the squares of all gradients by part; ZeRO steps one group, or one slice of it, at a time."""
        for group in optimizer.param_groups if self._is_wanted else ():
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if gradients:
                square = torch.stack([torch.linalg.vector_norm(each.float()) for each in gradients]).square().sum()
                self._squares[group["part"]] = self._squares.get(group["part"], 0) + square

    def read(self, accelerator: Accelerator, grad_norm: float | None) -> dict[str, float]:
        """Return the norm of every part that trains; every process must call this.

        Args:
            grad_norm: Norm of the whole gradient before clipping, to which the norms of the parts are scaled; None if
                it was not clipped.
        """
        squares = torch.zeros(len(PARTS), device=accelerator.device)
        for part, square in self._squares.items():
            squares[PARTS.index(part)] = square
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            squares = accelerator.reduce(squares, reduction="sum")
        total = squares.sum().sqrt().item()
        if not total:
            return {}
        scale = 1.0 if grad_norm is None else grad_norm / total
        norms = zip(PARTS, squares.sqrt().tolist(), strict=True)
        return {f"grad_norm_{part}": norm * scale for part, norm in norms if norm}

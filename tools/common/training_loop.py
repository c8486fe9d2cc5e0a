"""Training loop of the codec and the text model: schedule, gradient clipping, averages, checkpoints, progress, log."""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from vita_audio.files.atomic import atomic_path

CHECKPOINT = "checkpoint.pt"


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to 2 % of `args.lr`."""
    warm = min(1.0, (step + 1) / max(args.warmup, 1))
    return args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps))))


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return an `avg_fn` for `AveragedModel` whose decay rises from 0.1 to `decay`, so early weights soon fade."""

    def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        share = 1 - min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
        return averaged.lerp(current, share)

    return average


def has_bf16(device: str) -> bool:
    """Return whether a device has instructions for bfloat16; others are up to forty times slower with it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.device(device).type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast(device: str, bf16: bool | None) -> torch.autocast:
    """Return the context of a training step; `bf16` as the option of `add_loop_options`."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=has_bf16(device) if bf16 is None else bf16)


def describe(row: dict[str, float]) -> str:
    """Return a row of the log as a line to read."""
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "minutes"))
    return f"step {row['step']:g}, {row['minutes']:.1f} minutes: {metrics}"


def averaged_weights(run: Path, part: str) -> dict[str, Tensor]:
    """Return the averaged weights of a part of a trained model, such as `flow`, from its run folder.

    Raises: ValueError for a run of another model.
    """
    state, prefix = torch.load(run / CHECKPOINT, weights_only=True, map_location="cpu")["averaged"], f"module.{part}."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        raise ValueError(f"{run} must be a run that trained a {part}, got a run of another model")
    return weights


class TrainingLoop:
    """Trains a model that maps a batch to a dictionary of losses, with the loss to minimise under `total`.

    Writes `checkpoint.pt` (weights, averages, optimiser, step) and `log.jsonl` to the run folder. An interrupted run
    resumes from its last checkpoint.

    Attributes:
        averaged: Exponential moving average of the weights, the model to export; None without `ema_decay`.
        num_skipped: Steps skipped because their gradients were not finite.
    """

    def __init__(self, model: nn.Module, args: argparse.Namespace, ema_decay: float | None = 0.999):
        """Set up the run or resume it; `args` are the options of `add_loop_options`, with a resolved device.

        Raises: ValueError if the run's checkpoint is that of another model.
        """
        self.model, self.args = model.to(args.device), args
        self.averaged = None
        if ema_decay is not None:
            self.averaged = AveragedModel(model, avg_fn=moving_average(ema_decay), use_buffers=True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.step, self.num_skipped, self.seconds = 0, 0, 0.0
        args.output.mkdir(parents=True, exist_ok=True)
        self.checkpoint = args.output / CHECKPOINT
        if self.checkpoint.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.args.device)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = "holds a model of other options; resume with the same ones, or choose another --output"
            raise ValueError(f"{self.checkpoint} {reason}") from error
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.step, self.num_skipped, self.seconds = state["step"], state["num_skipped"], state["seconds"]
        print(f"continuing at step {self.step} of {self.args.steps} from {self.checkpoint}")

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"step": self.step, "num_skipped": self.num_skipped, "seconds": self.seconds}
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        with atomic_path(self.checkpoint) as partial:
            torch.save(state, partial)

    def run(
        self,
        next_batch: Callable[[], dict],
        validate: Callable[[], dict],
        before_step: Callable[[int], None] | None = None,
        is_done: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train up to `args.steps`; log the losses and the metrics of `validate` at every checkpoint.

        Args:
            validate: Called without gradients and with the models in evaluation mode.
            before_step: Called with the step number before each step.
            is_done: Asked before the first step and after each checkpoint; true ends the training early.
        """
        args, means, started = self.args, {}, time.time() - self.seconds
        bar = tqdm(total=args.steps, initial=self.step, unit="step", smoothing=0.02)
        with open(args.output / "log.jsonl", "a", encoding="utf-8") as log:
            ended = is_done()
            while self.step < args.steps and not ended:
                if before_step is not None:
                    before_step(self.step)
                for name, value in self._train_step(next_batch()).items():
                    means[name] = 0.98 * means.get(name, value) + 0.02 * value
                self.step += 1
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()})
                if self.step % args.save_every == 0 or self.step == args.steps:
                    self.seconds = time.time() - started
                    self._save()
                    row = {"step": self.step, "minutes": self.seconds / 60, "num_skipped": self.num_skipped}
                    row |= means | self._evaluate(validate)
                    row = {name: round(float(value), 4) for name, value in row.items()}
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    tqdm.write(describe(row))
                    ended = is_done()
        bar.close()

    def _evaluate(self, validate: Callable[[], dict]) -> dict:
        models = nn.ModuleList(model for model in (self.model, self.averaged) if model is not None)
        models.eval()
        with torch.no_grad():
            metrics = validate()
        models.train()
        return metrics

    def _train_step(self, batch: dict) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.args)
        with autocast(self.args.device, self.args.bf16):
            losses: dict[str, Tensor] = self.model(batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            self.num_skipped += 1
            return {}
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}

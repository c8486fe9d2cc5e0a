"""The Trainer of transformers and its arguments, with a learning rate for MTP modules and a log of every depth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from vita_audio.data.code_noise import CodeNoise
from vita_audio.errors import is_lost_process
from vita_audio.models.mtp_loss import MTPOutput
from vita_audio.models.surgery import mtp_parameter_patterns
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.training.arguments import SpeechOptions
from vita_audio.training.checkpoints import publish, unfinished_folder, write_error
from vita_audio.training.nonfinite import NonfiniteGuard

MAIN = "main"
_SHOWN = ("loss", f"{MAIN}_accuracy", "grad_norm", "learning_rate", "tokens_per_second", "epoch")


def depth_name(depth: int) -> str:
    """Return the name of a depth in the log: `main` for the backbone (depth 0), `mtp_0` for the first module."""
    return MAIN if depth == 0 else f"mtp_{depth - 1}"


@dataclass
class SpeechTrainingArguments(SpeechOptions, TrainingArguments):
    """TrainingArguments of transformers with `SpeechOptions`, which take precedence."""

    def __post_init__(self):
        SpeechOptions.__post_init__(self)
        TrainingArguments.__post_init__(self)
        if self.deepspeed:  # which clips at 1.0 if its configuration does not say otherwise
            self.hf_deepspeed_config.config.setdefault("gradient_clipping", self.max_grad_norm)
        if self.eval_suite and self.save_strategy == SaveStrategy.NO:
            raise ValueError("--eval_suite evaluates checkpoints, which --save_strategy no does not write")


class DepthMeter:
    """Sums of loss, correct targets and targets of every depth since the last reading; the backbone is depth 0.

    Where modules also learn from the backbone, the divergence from it is summed too. A backbone that was not scored has
    no average.
    """

    def __init__(self):
        self._sums: Tensor | None = None  # (3, depths), with divergences (4, depths), float64
        self._num_tokens = 0

    def add(self, outputs: MTPOutput, num_tokens: int, num_items_in_batch: Tensor | int | None) -> None:
        """Count one forward pass.

        Args:
            outputs: Outputs of the model.
            num_tokens: Input tokens.
            num_items_in_batch: Divisor of the losses; None if each was divided by its number of targets.
        """
        counts = outputs.num_targets.double()
        if outputs.main_loss is None:
            counts[0] = 0
        divisor = counts if num_items_in_batch is None else num_items_in_batch
        unknown = torch.zeros_like(outputs.loss)
        main_loss = unknown if outputs.main_loss is None else outputs.main_loss
        losses = torch.cat([main_loss[None], outputs.mtp_losses]).double()
        sums = [losses * divisor, outputs.accuracies.double().where(counts > 0, 0) * counts, counts]
        if outputs.mtp_kl is not None:
            sums.append(torch.cat([unknown[None], outputs.mtp_kl]).double() * divisor)
        sums = torch.stack(sums).where(outputs.loss.isfinite(), 0)  # such a step is not applied
        self._sums = sums if self._sums is None else self._sums + sums
        self._num_tokens += num_tokens

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return averages over the targets of all processes and reset; every process must call this."""
        if self._sums is None:
            return {}
        num_tokens = self._sums.new_full((1, self._sums.shape[1]), self._num_tokens)
        sums = accelerator.reduce(torch.cat([num_tokens, self._sums]), reduction="sum").cpu()
        self._sums, self._num_tokens = None, 0
        values = {"num_tokens": int(sums[0, 0])}
        for depth, (_, loss, num_correct, count, *divergence) in enumerate(sums.T.tolist()):
            if depth == 0 and count == 0:  # a frozen backbone that was not scored
                continue
            values[f"{depth_name(depth)}_loss"] = loss / max(count, 1)
            values[f"{depth_name(depth)}_accuracy"] = num_correct / max(count, 1)
            if divergence and depth:
                values[f"{depth_name(depth)}_kl"] = divergence[0] / max(count, 1)
        return values


class CompactProgress(ProgressCallback):
    """Progress bar whose log lines omit the values that only the curves need."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write a log line with the values of `_SHOWN` and the mean accuracy of the MTP modules."""
        if "loss" in logs:
            modules = [value for name, value in logs.items() if name.startswith("mtp_") and name.endswith("_accuracy")]
            shown = {name: logs[name] for name in _SHOWN if name in logs}
            if modules:
                shown["mtp_accuracy"] = sum(modules) / len(modules)
            super().on_log(args, state, control, shown, **kwargs)


class StepLog(TrainerCallback):
    """Measures the time between log entries, and logs the last step whatever --logging_steps is."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.last_time = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps

    def elapsed(self) -> float:
        """Return the seconds since the last call or the start of training."""
        before, self.last_time = self.last_time, time.monotonic()
        return self.last_time - before


class SpeechTrainer(Trainer):
    """Trainer of `Qwen2MTPForCausalLM`, with `SpeechTrainingArguments`.

    Each log entry holds, besides transformers' own values, loss and accuracy of every depth (`main_loss`, `mtp_0_loss`,
    `main_accuracy`, ..., and `mtp_0_kl`, ... where the divergence from the backbone is learnt), averaged over all
    targets since the last entry; `tokens_per_second` over all processes; and the `minutes` of training, including those
    before a resumption.

    A frozen backbone is scored in the last step and every `--log_main_loss` steps; entries between lack its values.
    """

    def __init__(
        self,
        *args: Any,
        front_end: SenseVoiceFrontEnd | None = None,
        code_noise: CodeNoise | None = None,
        **kwargs: Any,
    ):
        """Make a trainer; `args` and `kwargs` are those of transformers' Trainer.

        Args:
            front_end: Computes the features of continuous input; it is saved with the model.
            code_noise: Noise in the audio codes that the model reads.
        Raises: ValueError for one process with several GPUs, which would split batches without regard to documents.
        """
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"training runs one process for each GPU, got one for {self.args.n_gpu}; start it with torchrun "
                f"--nproc_per_node {self.args.n_gpu}, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        self.front_end, self.code_noise = front_end, code_noise
        self._checkpoint_parent: Path | None = None  # while a checkpoint is written
        folder, process = Path(self.args.output_dir), self.args.process_index
        skip = self.args.on_nonfinite == "skip"
        self._guard = NonfiniteGuard(folder, process, max_loss=self.args.max_loss, skip=skip)
        self._meter = DepthMeter()
        self._step_log = StepLog()
        self.add_callback(self._step_log)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(CompactProgress)

    def parameter_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Group the trained parameters by learning rate (MTP modules or not) and weight decay (not for norms, biases).

        Raises: ValueError if no parameter trains.
        """
        patterns = mtp_parameter_patterns(model.config)
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_mtp = any(fnmatchcase(name, pattern) for pattern in patterns)
                groups.setdefault((is_mtp, name in decayed and "_norms." not in name), []).append(parameter)
        if not groups:
            raise ValueError("no parameter trains; a frozen language model needs a config with MTP modules")
        return [
            {
                "params": parameters,
                "lr": self.args.learning_rate * (self.args.mtp_model_lr_mult if is_mtp else 1.0),
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for (is_mtp, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Make the optimiser; one made from a DeepSpeed config gets our groups, not a single one."""
        model = self.model if model is None else model
        if self.is_deepspeed_enabled and self.optimizer is not None:
            from accelerate.utils import DummyOptim  # exists with DeepSpeed only

            if isinstance(self.optimizer, DummyOptim):
                self.optimizer.params = self.parameter_groups(model)
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self.parameter_groups(model), **options)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        step = self.state.global_step
        scores_backbone = step % self.args.log_main_loss == 0 or step + 1 >= self.state.max_steps
        inputs = {**inputs, "score_backbone": scores_backbone}  # a backbone that trains is scored anyway
        samples = inputs.pop("samples", ())
        if self.is_in_train and self.code_noise is not None and self.code_noise.fraction:
            inputs["input_ids"] = self.code_noise(inputs["input_ids"])
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.is_in_train:
            share = 1 if num_items_in_batch is None else num_items_in_batch / outputs.num_targets[0].clamp(min=1)
            outputs.loss = loss = self._guard.watch(loss, outputs.loss * share, samples)
            self._meter.add(outputs, inputs["input_ids"].numel(), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        checked = 0.0 if self.args.fp16 else grad_norm  # in fp16, overflows are normal and the loss scaler skips them
        if not self._guard.accepts(self.state.global_step + 1, checked):
            model.zero_grad()  # without gradients the optimizer changes nothing; DeepSpeed has skipped the step already
        return grad_norm

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step < self.state.max_steps:  # resumed at the last step, the Trainer would take another
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial):
        return str(self._checkpoint_parent or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial):
        folder, step = Path(self.args.output_dir), self.state.global_step
        self._checkpoint_parent = unfinished_folder(folder, step)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the files of all processes are there
            if self.args.should_save:
                publish(folder, step, self.args.save_total_limit)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # torch.save raises a RuntimeError if the disk is full
            if is_lost_process(error):
                raise
            raise write_error(folder, step, error) from error
        finally:
            self._checkpoint_parent = None
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if state_dict is not None:  # DeepSpeed gathers tied weights once for each name
            state_dict = {
                name: value for name, value in state_dict.items() if name not in self.model.all_tied_weights_keys
            }
        super()._save(output_dir, state_dict)
        if self.front_end is not None and self.args.should_save:
            self.front_end.save_pretrained(output_dir or self.args.output_dir)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the values of all depths, the speed and the time to an entry of the training log."""
        if "loss" in logs:
            values = self._meter.read(self.accelerator)
            seconds = self._step_log.elapsed()
            minutes_before = next(
                (entry["minutes"] for entry in reversed(self.state.log_history) if "minutes" in entry), 0
            )
            values["tokens_per_second"] = values["num_tokens"] / seconds
            values["minutes"] = minutes_before + seconds / 60
            if self.args.mtp_model_lr_mult != 1 and self.model.lm_head.weight.requires_grad:
                logs["mtp_learning_rate"] = logs["learning_rate"] * self.args.mtp_model_lr_mult
            logs = {**logs, **values}
        super().log(logs, start_time)

"""The Trainer of transformers and its arguments, with a learning rate for MTP modules and a log of every depth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_callback import ProgressCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from vita_audio.data.code_noise import CodeNoise
from vita_audio.errors import is_lost_process
from vita_audio.models.adapters import load_adapter_weights, save_whole_config
from vita_audio.models.mtp_loss import MTPOutput
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.training.arguments import SpeechOptions
from vita_audio.training.checkpoints import WRITE_ERRORS, publish, unfinished_folder, write_error
from vita_audio.training.curriculum import LengthCurriculum
from vita_audio.training.gradient_norms import GradientNorms
from vita_audio.training.nonfinite import NonfiniteGuard
from vita_audio.training.parts import MTP, PARTS, parameter_parts
from vita_audio.training.stage_adapter import leave_out_base
from vita_audio.training.world_size import restore_zero3_optimizer

MAIN = "main"
_SHOWN = ("loss", f"{MAIN}_accuracy", "grad_norm", "learning_rate", "tokens_per_second", "eta_minutes", "epoch")


def depth_name(depth: int) -> str:
    """Return the name of a depth in the log: `main` for the backbone (depth 0), `mtp_0` for the first module."""
    return MAIN if depth == 0 else f"mtp_{depth - 1}"


def complete_deepspeed_config(config: dict[str, Any], max_grad_norm: float, *, bf16: bool) -> None:
    """Set what a DeepSpeed configuration leaves open, where DeepSpeed's default differs from a plain run."""
    config.setdefault("gradient_clipping", max_grad_norm)  # default: 1.0
    if bf16:  # 0.18 applies gradients that are not finite
        config.setdefault("bf16", {"enabled": True}).setdefault("check_grad_overflow", True)


@dataclass
class SpeechTrainingArguments(SpeechOptions, TrainingArguments):
    """TrainingArguments of transformers with `SpeechOptions`, which take precedence."""

    def __post_init__(self):
        SpeechOptions.__post_init__(self)
        if self.label_smoothing_factor:  # the Trainer would then hide the labels from the model
            raise ValueError(f"--label_smoothing_factor must be 0, got {self.label_smoothing_factor}; leave it out")
        if self.report_to == "auto":
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        TrainingArguments.__post_init__(self)
        if self.deepspeed:
            complete_deepspeed_config(self.hf_deepspeed_config.config, self.max_grad_norm, bf16=self.bf16)
        if self.eval_suite and self.save_strategy == SaveStrategy.NO:
            raise ValueError("--eval_suite evaluates checkpoints, which --save_strategy no does not write")


class DepthMeter:
    """Sums over the targets of every depth since the last reading; the backbone is depth 0.

    What a batch does not report, such as the loss of a backbone that was not scored, has no part in the averages.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}  # (depths,) each, float64

    def add(self, outputs: MTPOutput, is_token: Tensor, num_items_in_batch: Tensor | int | None) -> None:
        """Count one forward pass.

        Args:
            outputs: Outputs of the model.
            is_token: Whether a place of the batch is not padding, (batch, time).
            num_items_in_batch: Divisor of the losses; None if each was divided by its number of targets.
        """
        counts = outputs.num_targets.double()
        if outputs.main_loss is None:
            counts[0] = 0
        divisor = counts if num_items_in_batch is None else num_items_in_batch
        backbone = torch.zeros_like(outputs.loss)[None]  # where only modules have a value
        main_loss = backbone if outputs.main_loss is None else outputs.main_loss[None]
        sums = {
            "loss": torch.cat([main_loss, outputs.mtp_losses]).double() * divisor,
            "correct": outputs.accuracies.double().where(counts > 0, 0) * counts,
            "count": counts,
        }
        if outputs.mtp_kl is not None:
            sums["kl"] = torch.cat([backbone, outputs.mtp_kl]).double() * divisor
        if outputs.agreements is not None:
            sums["agreeing"] = torch.cat([backbone, outputs.agreements]).double() * counts
            sums["compared"] = counts
        if outputs.audio_losses is not None:
            sums["audio_loss"] = outputs.audio_losses.double() * divisor
            sums["audio_count"] = outputs.num_audio_targets.double()
        if outputs.mixture is not None:
            sums["mixture"] = outputs.mixture.expand_as(counts).double() * divisor
            sums["mixture_weight"] = torch.cat([backbone, outputs.mixture_weights]).double() * counts
        if outputs.alignment is not None:
            sums["alignment"], sums["aligned"] = outputs.alignment.expand_as(counts), torch.ones_like(counts)
        # a batch whose loss is not finite is not learned from, but has taken its time
        sums = {name: values.double().where(outputs.loss.isfinite(), 0) for name, values in sums.items()}
        sums["places"] = torch.full_like(counts, is_token.numel())
        sums["filled"] = is_token.sum().double().expand_as(counts)
        for name, values in sums.items():
            self._sums[name] = self._sums.get(name, 0) + values

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return averages over the targets of all processes and reset; every process must call this."""
        if not self._sums:
            return {}
        table = accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum").cpu()
        depths = [dict(zip(self._sums, column, strict=True)) for column in table.T.tolist()]
        self._sums = {}
        values = {"num_tokens": int(depths[0]["places"]), "pack_fill": depths[0]["filled"] / depths[0]["places"]}
        if "aligned" in depths[0]:
            values["alignment_loss"] = depths[0]["alignment"] / max(depths[0]["aligned"], 1)
        if "mixture" in depths[0]:  # a mean over the targets of the first module
            values["mixture_loss"] = depths[1]["mixture"] / max(depths[1]["count"], 1)
        for depth, sums in enumerate(depths):
            if sums["count"]:  # not a frozen backbone that was not scored, nor batches without any finite loss
                values |= {f"{depth_name(depth)}_{name}": value for name, value in _averages(sums, depth > 0)}
        return values


def _averages(sums: dict[str, float], is_module: bool) -> Iterator[tuple[str, float]]:
    """Yield the averages of one depth, which has targets, by name."""
    count = sums["count"]
    yield "loss", sums["loss"] / count
    yield "accuracy", sums["correct"] / count
    if is_module and "kl" in sums:
        yield "kl", sums["kl"] / count
    if is_module and "mixture_weight" in sums:
        yield "mixture_weight", sums["mixture_weight"] / count
    if is_module and sums.get("compared"):
        yield "agreement", sums["agreeing"] / sums["compared"]
    if num_audio := sums.get("audio_count"):
        yield "audio_loss", sums["audio_loss"] / num_audio
    if "audio_count" in sums and count > num_audio:
        yield "text_loss", (sums["loss"] - sums["audio_loss"]) / (count - num_audio)


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
        self.last = time.monotonic(), state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps

    def elapsed(self, step: int) -> tuple[float, int]:
        """Return the seconds and the steps, at least one, since the last call or the start of training."""
        before, self.last = self.last, (time.monotonic(), step)
        return self.last[0] - before[0], max(step - before[1], 1)


class SpeechTrainer(Trainer):
    """Trainer of `MTPForCausalLM`, with `SpeechTrainingArguments`.

    Each log entry holds, besides transformers' own values, loss and accuracy of every depth (`main_loss`, `mtp_0_loss`,
    `main_accuracy`, ..., and `mtp_0_kl`, ... where the divergence from the backbone is learnt), averaged over all
    targets since the last entry; the loss of text and of audio codes alone (`main_text_loss`, `main_audio_loss`); how
    often a module predicts the backbone's token (`mtp_0_agreement`); with a coordinator, the loss of the modules' mixed
    predictions and the weight of each (`mixture_loss`, `mtp_0_mixture_weight`); `pack_fill`, the share of places that
    are not padding; the norm of the last gradient, before clipping, of each part of the model (`grad_norm_backbone`);
    `tokens_per_second` over all processes, padding included; the `minutes` of training, including those before a
    resumption, and an estimate of those that remain, `eta_minutes`.

    A frozen backbone is scored in the last step and every `--log_main_loss` steps; entries between lack its values and
    the agreement with it.
    """

    def __init__(
        self,
        *args: Any,
        front_end: SenseVoiceFrontEnd | None = None,
        code_noise: CodeNoise | None = None,
        curriculum: LengthCurriculum | None = None,
        adapter_base: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        """Make a trainer; `args` and `kwargs` are those of transformers' Trainer.

        The data collator must be a `PackCollator`, whose ids tell padding and audio codes.

        Args:
            front_end: Computes the features of continuous input; it is saved with the model.
            code_noise: Noise in the audio codes that the model reads; with it, text and audio loss are logged apart.
            curriculum: Lengths of the packs in the first steps; None for whole packs.
            adapter_base: `describe_base` of the base, if the model has an adapter that trains.
        Raises: ValueError for one process with several GPUs, which would split batches without regard to documents; and
            for a curriculum with continuous input, whose features cannot be cut with its placeholders.
        """
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"training runs one process for each GPU, got one for {self.args.n_gpu}; start it with torchrun "
                f"--nproc_per_node {self.args.n_gpu}, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        if curriculum is not None and front_end is not None:
            raise ValueError("--curriculum_length needs audio input as codes, got continuous input; leave it out")
        self.front_end, self.code_noise = front_end, code_noise
        self.curriculum, self.adapter_base = curriculum, adapter_base
        if adapter_base is not None:
            leave_out_base(self.model)
        self._checkpoint_parent: Path | None = None  # while a checkpoint is written
        folder, process = Path(self.args.output_dir), self.args.process_index
        skip = self.args.on_nonfinite == "skip"
        options = {"max_loss": self.args.max_loss, "skip": skip, "scales_loss": self.args.fp16}
        self._guard = NonfiniteGuard(folder, process, **options)
        self._meter = DepthMeter()
        self._step_log = StepLog()
        self.add_callback(self._step_log)
        self._gradient_norms = GradientNorms()
        self.add_callback(self._gradient_norms)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(CompactProgress)

    def parameter_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Group the trained parameters by part of the model and weight decay (not for norms, biases).

        Groups of MTP modules, the last ones, have a learning rate of their own.

        Raises: ValueError if no parameter trains.
        """
        parts = parameter_parts(model)
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = PARTS.index(parts[name]), name in decayed and "_norms." not in name
                groups.setdefault(key, []).append(parameter)
        if not groups:
            raise ValueError("no parameter trains; a frozen language model needs a config with MTP modules")
        return [
            {
                "params": parameters,
                "part": PARTS[part],
                "lr": self.args.learning_rate * (self.args.mtp_model_lr_mult if PARTS[part] == MTP else 1.0),
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for (part, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
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
        inputs["code_ids"] = None if self.code_noise is None else self.code_noise.code_ids
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.is_in_train:
            mean_loss = self._mean_loss(loss, outputs.num_targets[0], num_items_in_batch)
            outputs.loss = loss = self._guard.watch(loss, mean_loss, samples)
            is_token = inputs["input_ids"] != self.data_collator.pad_id
            self._meter.add(outputs, is_token, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _mean_loss(self, loss: Tensor, num_targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Return the loss for each target of this batch; the Trainer's is for each of a step, times the processes."""
        if num_items_in_batch is None:
            return loss
        num_losses = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss * num_items_in_batch / (num_losses * num_targets.clamp(min=1))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.curriculum is not None:
            step, max_steps = self.state.global_step, self.state.max_steps
            epoch_iterator = (self.curriculum.cut(batch, step, max_steps) for batch in epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not self._guard.accepts(self.state.global_step + 1, grad_norm):
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
        except WRITE_ERRORS as error:
            if is_lost_process(error):
                raise
            raise write_error(folder, step, error) from error
        finally:
            self._checkpoint_parent = None
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.adapter_base is not None and self.is_deepspeed_enabled:
            engine = self.model_wrapped  # the Trainer says this for a model of peft's own class only
            engine.save_checkpoint = partial(type(engine).save_checkpoint, engine, exclude_frozen_parameters=True)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        if self.adapter_base is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:  # the Trainer knows adapters only in a model of peft's own class
            load_adapter_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and self.is_deepspeed_enabled and self.model_wrapped.load_universal_checkpoint():
            if self.model_wrapped.zero_optimization_partition_weights():
                restore_zero3_optimizer(self.model_wrapped.optimizer.optimizer, Path(checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if state_dict is not None:  # DeepSpeed gathers tied weights once for each name
            state_dict = {
                name: value for name, value in state_dict.items() if name not in self.model.all_tied_weights_keys
            }
        super()._save(output_dir, state_dict)
        if self.adapter_base is not None and self.args.should_save:
            save_whole_config(self.model.config, self.adapter_base, Path(output_dir or self.args.output_dir))
        if self.front_end is not None and self.args.should_save:
            self.front_end.save_pretrained(output_dir or self.args.output_dir)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the values of all depths, the speed and the time to an entry of the training log."""
        if "loss" in logs:
            values = self._meter.read(self.accelerator)
            values |= self._gradient_norms.read(self.accelerator, logs.get("grad_norm"))
            seconds, num_steps = self._step_log.elapsed(self.state.global_step)
            minutes_before = next(
                (entry["minutes"] for entry in reversed(self.state.log_history) if "minutes" in entry), 0
            )
            values["tokens_per_second"] = values["num_tokens"] / seconds
            values["minutes"] = minutes_before + seconds / 60
            num_left = self.state.max_steps - self.state.global_step
            values["eta_minutes"] = seconds / 60 / num_steps * num_left
            if self.args.mtp_model_lr_mult != 1 and self.model.trains_backbone:
                logs["mtp_learning_rate"] = logs["learning_rate"] * self.args.mtp_model_lr_mult
            logs = {**logs, **values}
        super().log(logs, start_time)

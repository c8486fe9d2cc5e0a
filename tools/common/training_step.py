"""Measure training steps of one checkout: the part of tools/benchmark_training.py that runs in a process of its own.

`main` prints one line of JSON, the fields of `StepMetrics`. The file uses only names that earlier checkouts have too.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from vita_audio.models import Qwen2MTPConfig
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable

FROZEN, TRAINABLE = "frozen", "trainable"
MIB = 2**20
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass
class Settings:
    """What is measured.

    Attributes:
        config: Model config, its fields or a file.
        step: FROZEN (only the modules train) or TRAINABLE (everything).
        rows: Packs in a step.
        tokens: Tokens in a pack.
        documents: Documents in a pack, of equal lengths.
        masked: Share of the tokens of a document, its first ones, without label.
        warm_up: Steps before the measured ones.
        steps: Measured steps.
        log_main_loss: A frozen backbone is scored in every step of this number, where the checkout can leave it out.
        optimizer: Also step AdamW; its time does not count.
        profile: Also list the operations that take longest.
    """

    config: dict[str, Any] | str
    step: str = TRAINABLE
    rows: int = 1
    tokens: int = 512
    documents: int = 1
    masked: float = 0.5
    warm_up: int = 0
    steps: int = 2
    log_main_loss: int = 10
    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"
    optimizer: bool = False
    profile: bool = False
    seed: int = 0


@dataclass
class StepMetrics:
    """One step, forward and backward; memory in MiB, None where it is not known.

    Attributes:
        seconds: Of CPU time on the CPU, elapsed on a GPU.
        mfu: Model FLOPs per second as a share of what a large matrix product reaches on this device.
        peak_memory: Above the weights (on a GPU also above the optimiser's state), gradients included.
        activations: What peak memory holds besides the gradients: saved activations, logits, temporary copies.
        operations: (name, seconds) of the ten operations that take longest.
    """

    loss: float
    seconds: float
    tokens_per_second: float
    mfu: float
    matmul_tflops: float
    weights: float
    gradients: float
    optimizer: float
    peak_memory: float | None
    activations: float | None
    operations: list[tuple[str, float]]


def make_model(settings: Settings) -> PreTrainedModel:
    """Make the model with random weights; those of one seed are the same in every checkout."""
    if isinstance(settings.config, dict):
        config = Qwen2MTPConfig(**settings.config)
    else:
        config = AutoConfig.from_pretrained(settings.config)
    torch.manual_seed(settings.seed)
    with torch.device(settings.device):
        dtype = getattr(torch, settings.dtype)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=settings.attention)
    set_trainable(model, mtp_parameter_patterns(config) if settings.step == FROZEN else ["*"])
    return model.train()


def make_batch(settings: Settings, vocab_size: int) -> dict[str, Tensor]:
    """Make packs of random tokens."""
    generator = torch.Generator().manual_seed(settings.seed)
    ids = torch.randint(vocab_size, (settings.rows, settings.tokens), generator=generator)
    length = -(-settings.tokens // settings.documents)
    positions = torch.arange(settings.tokens).remainder(length).expand(settings.rows, -1)
    labels = ids.where(positions >= settings.masked * length, -100)
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: values.to(settings.device) for name, values in batch.items()}


def model_flops(config: Qwen2MTPConfig, settings: Settings, num_targets: list[int]) -> float:
    """Count the floating-point operations that a step needs: matrix products and attention, nothing computed twice."""
    hidden, tokens = config.hidden_size, settings.rows * settings.tokens
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    attention = head_size * hidden * 2 * (config.num_attention_heads + config.num_key_value_heads)
    scores = head_size * config.num_attention_heads * settings.tokens / settings.documents  # half of them are masked
    layer = tokens * (attention + scores + 3 * hidden * config.intermediate_size)
    module = layer + tokens * 2 * hidden * hidden
    frozen = settings.step == FROZEN
    body = config.num_backbone_layers * layer * (2 if frozen else 6) + config.num_nextn_predict_layers * module * 6
    head = hidden * config.vocab_size
    return body + head * (4 * sum(num_targets[1:]) if frozen else 6 * sum(num_targets))


def matmul_flops(settings: Settings) -> float:
    """Measure how many floating-point operations per second a large matrix product reaches."""
    size = MATMUL_SIZE[torch.device(settings.device).type]
    matrix = torch.randn(size, size, device=settings.device, dtype=getattr(torch, settings.dtype))
    best = min(timed(settings, lambda: matrix @ matrix) for _ in range(5))
    return 2 * size**3 / best


def timed(settings: Settings, call: Any) -> float:
    """Return the seconds of a call: CPU time on the CPU, elapsed time on a GPU."""
    on_gpu = torch.device(settings.device).type == "cuda"
    clock = perf_counter if on_gpu else process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


class PeakMemory:
    """Peak memory of this process, or of the GPU, above the amount when this is made.

    `read` returns MiB. Linux counts pages of a process in batches, so a reading is exact to a fraction of a MiB only.
    """

    def __init__(self, device: str):
        self._on_gpu = torch.device(device).type == "cuda"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated() / MIB
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM to VmRSS
            self._start = self._resident("VmRSS")

    @staticmethod
    def _resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024

    def read(self) -> float:
        peak = torch.cuda.max_memory_allocated() / MIB if self._on_gpu else self._resident("VmHWM")
        return peak - self._start


def mebibytes(tensors: Any) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB


def measure(settings: Settings) -> StepMetrics:
    """Measure the steps that `settings` describe."""
    model = make_model(settings)
    batch = make_batch(settings, model.config.vocab_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0) if settings.optimizer else None
    outputs = None

    def step(**options: bool) -> None:
        nonlocal outputs
        outputs = model(**batch, use_cache=False, **options)
        outputs.loss.backward()

    def run(count: int, **options: bool) -> float:
        seconds = []
        for _ in range(count):
            model.zero_grad(set_to_none=True)
            seconds.append(timed(settings, lambda: step(**options)))
            if optimizer is not None:
                optimizer.step()
        return median(seconds) if seconds else 0.0

    run(settings.warm_up)
    model.zero_grad(set_to_none=True)
    memory = PeakMemory(settings.device) if settings.device != "cpu" or sys.platform == "linux" else None
    seconds = run(settings.steps)
    if settings.step == FROZEN and "score_backbone" in inspect.signature(type(model).forward).parameters:
        seconds += (run(settings.steps, score_backbone=False) - seconds) * (1 - 1 / settings.log_main_loss)
    peak = memory and memory.read()
    gradients = mebibytes(parameter.grad for parameter in trained)
    matmul = matmul_flops(settings)
    return StepMetrics(
        loss=outputs.loss.item(),
        seconds=seconds,
        tokens_per_second=batch["input_ids"].numel() / seconds,
        mfu=model_flops(model.config, settings, outputs.num_targets.tolist()) / seconds / matmul,
        matmul_tflops=matmul / 1e12,
        weights=mebibytes(model.parameters()),
        gradients=gradients,
        optimizer=mebibytes(v for s in optimizer.state.values() for v in s.values()) if optimizer else 0.0,
        peak_memory=peak,
        activations=peak and peak - gradients,
        operations=longest_operations(settings, step) if settings.profile else [],
    )


def longest_operations(settings: Settings, step: Any) -> list[tuple[str, float]]:
    """Return the ten operations of a step that take longest by themselves, with their seconds."""
    on_gpu = torch.device(settings.device).type == "cuda"
    with torch.profiler.profile() as profiler:
        step()
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, kind))
    return [(event.key, getattr(event, kind) / 1e6) for event in events[:10]]


def main(settings: str) -> None:
    """Measure with settings given as JSON and print the metrics as JSON, the last line of the output."""
    torch.set_num_threads(1)
    print(json.dumps(asdict(measure(Settings(**json.loads(settings))))))

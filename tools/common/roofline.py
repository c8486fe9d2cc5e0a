"""Measure how much of a device's memory bandwidth decoding uses: the part of tools/benchmark_roofline.py with torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from tools.common.decoding_speed import NO_END, Clock
from vita_audio.errors import one_line_errors
from vita_audio.inference.pipeline import resolve_device
from vita_audio.interleave import BACKBONE
from vita_audio.models import Qwen2MTPForCausalLM
from vita_audio.models.mtp_generation import mtp_steps

CHECKED_MODES = ("vanilla", "boost", "turbo")
CHECK_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "num_nextn_predict_layers": 4,
    "vocab_size": 257,
}


def make_model(config: PreTrainedConfig, device: str, dtype: torch.dtype, seed: int = 0) -> Qwen2MTPForCausalLM:
    """Make a model with random weights on a device."""
    torch.manual_seed(seed)
    with torch.device(device):
        return Qwen2MTPForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def decode(
    model: Qwen2MTPForCausalLM, mode: str, *, prompt_tokens: int, new_tokens: int, clock: Callable[[], float], **options
) -> list[tuple[int, int, float]]:
    """Decode one answer of fixed length, greedily; return token, depth and time of each step."""
    ids = torch.arange(prompt_tokens, device=model.device)[None] % model.config.vocab_size
    steps = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=mtp_steps,
        mtp_inference_mode=mode,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=NO_END,
        pad_token_id=0,
        **options,
    )
    return [(int(step.tokens), step.depths[0], clock()) for step in steps]


def check_ids(device: str) -> None:
    """Check on a small model, in float32, that a device decodes the tokens of the CPU.

    With acceptance 1, the tokens of all modes are those of vanilla. Raises: RuntimeError for other tokens.
    """
    model = make_model(AutoConfig.for_model("qwen2_mtp", **CHECK_CONFIG), "cpu", torch.float32)
    sizes = {"prompt_tokens": 16, "new_tokens": 64, "clock": lambda: 0.0}

    def answers(acceptance: float) -> list[list[int]]:
        found = [decode(model, mode, acceptance=acceptance, **sizes) for mode in CHECKED_MODES]
        return [[token for token, _, _ in steps] for steps in found]

    expected = answers(0)
    model.to(device)
    if answers(0) != expected or answers(1) != [expected[0]] * len(CHECKED_MODES):
        raise RuntimeError(f"{device} does not decode the tokens of the CPU; its speed means nothing")


def memory_bandwidth(device: torch.device, size: int = 2**30) -> float:
    """Return the bytes per second that a copy of `size` bytes reads and writes, the best of ten."""
    clock, source = Clock(device), torch.zeros(size, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(10):
        start = clock()
        target.copy_(source)
        seconds.append(clock() - start)
    return 2 * size / min(seconds)


def weight_bytes(model: Qwen2MTPForCausalLM) -> tuple[int, int]:
    """Return the size of the weights that one step of the backbone reads, and one of a module."""

    def size(*parts: nn.Module) -> int:
        return sum(parameter.nbytes for part in parts for parameter in part.parameters())

    layers, num_backbone = model.model.layers, model.config.num_backbone_layers
    module = 0
    if model.config.num_nextn_predict_layers:
        norms = (model.mtp_embed_norms[0], model.mtp_hidden_norms[0], model.model.norm)
        module = size(layers[num_backbone], model.mtp_projs[0], *norms, model.lm_head)
    return size(*layers[:num_backbone], model.model.norm, model.lm_head), module


def measure(
    model: Qwen2MTPForCausalLM, mode: str, bandwidth: float, *, prompt_tokens: int, new_tokens: int, repeats: int
) -> dict[str, Any]:
    """Measure a mode, without the first step, which reads the prompt, and after one answer that does not count.

    Returns: `tokens_per_second`; `backbone_ms` and `module_ms` per step, the latter None without module steps; and
        `bandwidth_share`: the bytes of the weights that all steps read, over those that the bandwidth allows in the
        same time. All are medians.
    """
    clock, sizes = Clock(model.device), {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    backbone_bytes, module_bytes = weight_bytes(model)
    speeds, shares, backbone, modules = [], [], [], []
    for repeat in range(1 + repeats):
        _, depths, times = zip(*decode(model, mode, clock=clock, **sizes), strict=True)
        if repeat == 0:
            continue
        total, num_modules = times[-1] - times[0], sum(depth != BACKBONE for depth in depths[1:])
        num_bytes = (new_tokens - 1 - num_modules) * backbone_bytes + num_modules * module_bytes
        speeds.append((new_tokens - 1) / total)
        shares.append(num_bytes / total / bandwidth)
        for depth, (before, after) in zip(depths[1:], pairwise(times), strict=True):
            (backbone if depth == BACKBONE else modules).append(1000 * (after - before))
    return {
        "tokens_per_second": median(speeds),
        "backbone_ms": median(backbone),
        "module_ms": median(modules) if modules else None,
        "bandwidth_share": median(shares),
    }


def measure_all(
    config: str,
    device: str | None,
    dtype: str,
    modes: Sequence[str],
    *,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
) -> dict[str, Any]:
    """Check that the device decodes correctly, then measure its bandwidth and all modes.

    Args:
        device: None: a GPU if there is one.
    """
    torch.set_num_threads(1)
    device = resolve_device(device)
    check_ids(device)
    model = make_model(AutoConfig.from_pretrained(config), device, getattr(torch, dtype))
    bandwidth = memory_bandwidth(model.device)
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    return {
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "CPU",
        "clock": Clock(model.device).name,
        "dtype": dtype,
        "num_parameters": model.num_parameters(),
        "bandwidth_gb_per_second": bandwidth / 1e9,
        **sizes,
        "modes": {mode: measure(model, mode, bandwidth, **sizes) for mode in modes},
    }


def main(settings: str) -> None:
    """Measure with settings given as JSON, the arguments of `measure_all`; print the result as JSON, the last line."""
    with one_line_errors("benchmark_roofline"):
        print(json.dumps(measure_all(**json.loads(settings))))

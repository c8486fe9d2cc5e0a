"""Identify a checkpoint folder and check that its files fit together, without loading it.

    python tools/check_checkpoint.py VITA-Audio-Boost
    python tools/check_checkpoint.py Qwen2.5-7B-Instruct --config configs/models/qwen2_7b_mtp10.json --json
    python tools/check_checkpoint.py VITA-Audio-Boost --load --dtype bfloat16

Supports speech models (with and without SenseVoice input), plain Qwen2, Qwen3 and Llama, glm-4-voice-tokenizer,
glm-4-voice-decoder, SenseVoiceSmall, text tokenizers, and codecs from other packages. The names and shapes of all
weights are compared with our classes, which then run once on tensors without values. Weights are not read, so a folder
of any size takes seconds; only codecs from other packages are loaded. With --load, a language model is loaded to
measure time and memory.
Exit code: 0 if the folder loads, 1 if it does not, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from vita_audio.command_line import (
    OneLineParser,
    add_device_option,
    add_dtype_option,
    check_files,
    quieten_transformers,
)
from vita_audio.errors import one_line_errors
from vita_audio.files.checkpoint import find_checkpoint

if TYPE_CHECKING:
    from vita_audio.checkpoints.inspection import Report

DOES_NOT_FIT = 1  # exit code
UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
BYTES_PER_NUMBER = {"bfloat16": 2, "float32": 4}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("check_checkpoint", __doc__)
    parser.add_argument("folder", metavar="DIR", help="folder, or the name of a downloaded repository of the hub")
    parser.add_argument("--config", type=Path, help="model config of a training stage that starts from DIR")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    group = parser.add_argument_group("loading")
    group.add_argument("--load", action="store_true", help="load a language model and measure time and memory")
    add_device_option(group)
    add_dtype_option(group)
    return parser.parse_args(arguments)


def measure_loading(folder: Path, device: str, dtype: str | None) -> str:
    """Load a language model, run it once (loading only maps some weights), and return the time and memory used."""
    import torch

    from vita_audio.inference.pipeline import default_dtype
    from vita_audio.models import LANGUAGE_CONFIGS
    from vita_audio.models.loading import load_weights, read_config

    config, dtype = read_config(folder, LANGUAGE_CONFIGS), dtype or default_dtype(device)
    start = perf_counter()
    model, _ = load_weights(folder, config, dtype=dtype, device_map=device)
    loaded = perf_counter()
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.zeros(1, 8, dtype=torch.int64, device=device), use_cache=False).logits
    logits.cpu()
    seconds = f"{loaded - start:.1f} s, then 8 tokens in {perf_counter() - loaded:.1f} s"
    peak = f"{short(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}B"
    if device.startswith("cuda"):
        peak += f" and {short(torch.cuda.max_memory_allocated(device))}B on the GPU"
    return f"in {seconds}, on {device} as {str(dtype).removeprefix('torch.')}; peak memory {peak}"


def render(report: Report) -> str:
    """Format the report for the terminal."""
    rows = []
    for part in report.parts:
        size, dtypes = short(sum(part.parameters.values())), " and ".join(sorted(part.parameters))
        rows.append((part.name, f"{part.num_tensors} tensors, {size} parameters as {dtypes}"))
        rows += [("", f"{name}, {short(size)}B") for name, size in part.files.items()]
        ways = Counter(part.initialised.values())
        rows += [("", f"{count} new tensors begin {way}") for way, count in ways.items()]
        rows.append(("dry run", part.dry_run))
    if report.num_parameters:
        sizes = [f"{short(report.num_parameters * size)}B as {name}" for name, size in BYTES_PER_NUMBER.items()]
        rows.append(("memory", ", ".join(sizes)))
    rows += list(report.facts.items())
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{report.folder}: {report.title}"] + [f"  {name.ljust(width)}  {text}" for name, text in rows]
    lines += [f"  PROBLEM: {problem}" for problem in report.problems]
    return "\n".join([*lines, "does not load" if report.problems else "loads"])


def short(number: float) -> str:
    """Format a number with a unit, such as 7.99 G."""
    return next((f"{number / size:.3g} {unit}" for unit, size in UNITS if number >= size), f"{number:.0f} ")


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("check_checkpoint"), redirect_stdout(sys.stderr):  # imported packages may print
        check_files(options.config)
        folder = find_checkpoint(options.folder, offline=True)
        from vita_audio.checkpoints.inspection import LANGUAGE_MODELS, inspect_checkpoint
        from vita_audio.inference.pipeline import resolve_device

        quieten_transformers()
        report = inspect_checkpoint(folder, options.config)
        if options.load and report.kind in LANGUAGE_MODELS and not report.problems:
            report.facts["loaded"] = measure_loading(folder, resolve_device(options.device), options.dtype)
    print(json.dumps(report.values(), indent=2) if options.json else render(report))
    if report.problems:
        raise SystemExit(DOES_NOT_FIT)


if __name__ == "__main__":
    main()

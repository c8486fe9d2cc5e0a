"""Measure training steps, also those of an earlier checkout in the same run.

    python tools/benchmark_training.py --output outputs/training_speed
    python tools/benchmark_training.py --compare-with ../earlier --output DIR
    python tools/benchmark_training.py --config configs/models/qwen2_7b_mtp10.json --device cuda --dtype bfloat16 \\
        --tokens 4096 --documents 8 --optimizer --steps 5 --warm-up 2 --output DIR

A step is forward and backward of one batch of random tokens, with random weights, the same ones in all checkouts. Each
measurement runs in a process of its own, and the checkouts take turns; the median over the repeats counts. On a CPU
with one thread, time is CPU time, which other programs disturb less.

Writes training_speed.json and training_speed.md into the output folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from vita_audio.command_line import OneLineParser, in_range
from vita_audio.files.atomic import write_json, write_text
from vita_audio.workers import ROOT, THIS, checkout_folder, run_worker

WORKER = ROOT / "tools" / "common" / "training_step.py"
STEPS = {"frozen": "backbone frozen", "trainable": "all trainable"}
DEFAULT_CONFIG = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 14,
    "num_nextn_predict_layers": 10,
    "vocab_size": 168072,
    "max_position_embeddings": 32768,
}
COLUMNS = {  # of a step's metrics -> heading, format
    "seconds": ("s/step", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "mfu": ("MFU", "{:.1%}"),
    "peak_memory": ("MiB above the weights", "{:.0f}"),
    "weights": ("weights MiB", "{:.0f}"),
    "gradients": ("gradients MiB", "{:.0f}"),
    "optimizer": ("optimizer MiB", "{:.0f}"),
    "activations": ("activations MiB", "{:.0f}"),
    "loss": ("loss", "{:.5f}"),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("benchmark_training", __doc__)
    positive = in_range(int, minimum=1)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--compare-with", type=checkout_folder, metavar="FOLDER", help="an earlier checkout to measure as well"
    )
    parser.add_argument("--config", type=Path, help="model config (default: hidden size 512, 4 layers, 10 MTP modules)")
    parser.add_argument("--train", nargs="+", choices=STEPS, default=list(STEPS), help="default: both")
    parser.add_argument("--rows", type=positive, default=1, help="packs in a step")
    parser.add_argument("--tokens", type=positive, default=512, help="tokens in a pack")
    parser.add_argument("--documents", type=positive, default=1, help="documents in a pack")
    parser.add_argument("--masked", type=in_range(float, minimum=0, maximum=1), default=0.5, help="share without label")
    parser.add_argument("--log-main-loss", type=positive, default=10, help="as in training")
    parser.add_argument("--repeats", type=positive, default=1, help="processes for each measurement")
    parser.add_argument("--warm-up", type=in_range(int, minimum=0), default=0, help="steps before those measured")
    parser.add_argument("--steps", type=positive, default=2, help="measured steps of a process")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and activations"
    )
    parser.add_argument("--attention", default="sdpa", help="attention back end")
    parser.add_argument("--optimizer", action="store_true", help="hold the state of AdamW too")
    parser.add_argument("--profile", action="store_true", help="list the operations that take longest")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and tokens")
    options = parser.parse_args(arguments)
    if options.config and not options.config.exists():
        parser.error(f"no such file: {options.config}")
    return options


def measure(options: argparse.Namespace, step: str, checkout: Path) -> dict[str, Any]:
    """Measure one step of a checkout in a process of its own; return the worker's `StepMetrics`."""
    names = ("rows", "tokens", "documents", "masked", "warm_up", "steps", "log_main_loss", "device", "dtype")
    settings = {name: getattr(options, name) for name in (*names, "attention", "optimizer", "profile", "seed")}
    settings |= {"config": str(options.config.absolute()) if options.config else DEFAULT_CONFIG, "step": step}
    return run_worker(WORKER, settings, checkout)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all steps of all checkouts; return settings and metrics: step -> checkout -> metrics."""
    checkouts = {THIS: ROOT}
    if options.compare_with:
        checkouts[options.compare_with.name] = options.compare_with
    results: dict[str, dict[str, Any]] = {}
    for step in options.train:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
        for _ in range(options.repeats):
            for name, checkout in checkouts.items():
                runs[name].append(measure(options, step, checkout))
                print(f"{STEPS[step]}, {name}: {runs[name][-1]['seconds']:.2f} s", flush=True)
        results[step] = {name: summarise(rows) for name, rows in runs.items()}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {"settings": settings, "steps": results}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of every metric, and all times."""
    middle = {
        name: median(run[name] for run in runs) if isinstance(value, float) else value
        for name, value in runs[0].items()
    }
    return middle | {"all_seconds": [run["seconds"] for run in runs]}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table, with the ratios of this checkout to the one it is compared with."""
    rows = [["step", "checkout", *(heading for heading, _ in COLUMNS.values())]]
    for step, checkouts in results.items():
        for name, metrics in checkouts.items():
            cells = [
                form.format(metrics[key]) if metrics[key] is not None else "" for key, (_, form) in COLUMNS.items()
            ]
            rows.append([STEPS[step], name, *cells])
        if len(checkouts) == 2:
            ours, theirs = checkouts.values()
            ratios = [f"{ours[key] / theirs[key]:.2f}x" if theirs[key] else "" for key in COLUMNS]
            rows.append([STEPS[step], "ratio", *ratios])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def operations(results: dict[str, dict[str, Any]]) -> str:
    """Return the operations that take longest, as Markdown lists; empty without --profile."""
    lines = []
    for step, checkouts in results.items():
        for name, metrics in checkouts.items():
            if metrics["operations"]:
                lines += ["", f"{STEPS[step]}, {name}: operations that take longest by themselves, seconds", ""]
                lines += [f"- {operation}: {seconds:.2f}" for operation, seconds in metrics["operations"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    report = benchmark(options)
    text = table(report["steps"]) + "\n" + operations(report["steps"])
    write_json(options.output / "training_speed.json", report)
    write_text(options.output / "training_speed.md", text.rstrip() + "\n")
    print(text)


if __name__ == "__main__":
    main()

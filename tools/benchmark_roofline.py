"""Measure how close decoding with random weights comes to the memory bandwidth of a GPU.

    python tools/benchmark_roofline.py --output outputs/roofline

First, a small model must decode the same tokens on the device as on the CPU. Then a copy within the device's memory
gives its bandwidth, and each mode decodes single answers of a fixed length with acceptance 0. A step of the backbone or
of a module has to read its weights once; the share of the bandwidth counts these bytes only. The default, 7B in
bfloat16, is meant to take less than ten minutes on a GPU with 80 GB. Writes roofline.json into the output folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vita_audio.command_line import DTYPES, OneLineParser, add_device_option, check_files, in_range, plan_name
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json
from vita_audio.workers import ROOT, run_worker

DEFAULT_CONFIG = ROOT / "configs" / "models" / "qwen2_7b_mtp10.json"
WORKER = ROOT / "tools" / "common" / "roofline.py"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("benchmark_roofline", __doc__)
    add, positive = parser.add_argument, in_range(int, minimum=1)
    add("--output", type=Path, required=True, help="folder for roofline.json")
    add("--config", type=Path, default=DEFAULT_CONFIG, help="model config (default: 7B with 10 modules)")
    add("--modes", type=plan_name, nargs="+", default=["vanilla", "boost", "turbo"], help="names or ratios")
    add("--prompt-tokens", type=positive, default=32, help="length of the prompt")
    add("--new-tokens", type=in_range(int, minimum=20), default=256, help="length of an answer")
    add("--repeats", type=positive, default=3, help="answers per mode")
    add("--dtype", choices=DTYPES, default="bfloat16", help="dtype of the weights")
    add_device_option(parser)
    return parser.parse_args(arguments)


def table(report: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| mode | tokens/s | ms per backbone step | ms per module step | share of the bandwidth |"]
    lines.append("|---|---|---|---|---|")
    for mode, metrics in report["modes"].items():
        module = "" if metrics["module_ms"] is None else f"{metrics['module_ms']:.3f}"
        times = f"{metrics['tokens_per_second']:.1f} | {metrics['backbone_ms']:.3f} | {module}"
        lines.append(f"| {mode} | {times} | {metrics['bandwidth_share']:.1%} |")
    device = f"{report['device']}, {report['dtype']}, {report['bandwidth_gb_per_second']:.0f} GB/s"
    return "\n".join([f"{device}, time: {report['clock']}", "", *lines])


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("benchmark_roofline"):
        check_files(options.config)
        options.output.mkdir(parents=True, exist_ok=True)
        names = ("device", "dtype", "modes", "prompt_tokens", "new_tokens", "repeats")
        settings = {name: getattr(options, name) for name in names} | {"config": str(options.config.resolve())}
        report = run_worker(WORKER, settings, ROOT)
        write_json(options.output / "roofline.json", report)
        print(table(report))


if __name__ == "__main__":
    main()

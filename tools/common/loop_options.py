"""Command-line options of the training programs that run a `TrainingLoop`."""

import argparse
from pathlib import Path

from vita_audio.command_line import add_device_option, in_range


def add_loop_options(parser: argparse.ArgumentParser, *, steps: int, lr: float, warmup: int = 300) -> None:
    """Add the options that `TrainingLoop` reads; `steps`, `lr` and `warmup` are defaults."""
    count = in_range(int, minimum=1)
    parser.add_argument("--output", type=Path, required=True, help="run folder; an interrupted run is resumed")
    parser.add_argument("--steps", type=count, default=steps, help="training steps")
    parser.add_argument("--lr", type=in_range(float, above=0), default=lr, help="peak learning rate")
    parser.add_argument("--warmup", type=in_range(int, minimum=0), default=warmup, help="steps of linear warm-up")
    parser.add_argument("--save-every", type=count, default=500, help="steps between checkpoints")
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="train in bfloat16 or float32 (default: bfloat16 if the device has instructions for it)",
    )
    add_device_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed for weights and batches")

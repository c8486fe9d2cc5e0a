"""Compare speech tokenizers by the phones that their codes tell apart: the same reader of phones is trained on each.

The share of phones that it reads wrong on held-out speech shows in minutes what codes have lost, before a decoder or a
language model is trained. An interrupted run is resumed. Writes a run folder for each tokenizer and `phones.json`.

    python -m tools.codec.compare_codes --corpus DIR --voice joe --output RUN --tokenizers old=embedded new=DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.common.loop_options import add_loop_options
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.errors import one_line_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("compare_codes", __doc__)
    count = in_range(int, minimum=1)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--voice", required=True, help="voice whose phone errors are counted apart from the others'")
    parser.add_argument("--tokenizers", nargs="+", required=True, metavar="NAME=DIR", help="DIR may be: embedded")
    add_loop_options(parser, steps=2000, lr=2e-3)
    parser.add_argument(
        "--batch-seconds", type=in_range(float, above=0), default=60.0, help="speech per step, in seconds"
    )
    parser.add_argument("--max-clips", type=count, default=5000, help="recordings to train on, drawn at random")
    parser.add_argument(
        "--held-out",
        type=count,
        default=100,
        help="test recordings per kind of voice, as many as tokenizers trained on this corpus held out",
    )
    options = parser.parse_args(arguments)
    named = dict(text.split("=", 1) for text in options.tokenizers if all(text.partition("=")))
    if len(named) < len(options.tokenizers):
        parser.error(f"--tokenizers must be NAME=DIR with a name of its own each, got {' '.join(options.tokenizers)}")
    options.tokenizers = named
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("compare_codes"):
        from tools.codec.code_reading import prepare

        compare = prepare(args)
    compare()


if __name__ == "__main__":
    main()

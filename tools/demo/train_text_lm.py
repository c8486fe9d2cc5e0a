"""Pretrain the tiny text model that the demo's first stage starts from; full-size models start from Qwen2.5 instead.

    python -m tools.demo.make_tokenizer --out vita_audio/assets/tiny_text_lm
    python -m tools.demo.train_text_lm --tokenizer vita_audio/assets/tiny_text_lm --output runs/tiny_text_lm \\
        --export vita_audio/assets/tiny_text_lm

A plain Qwen2 with a few million weights learns from generated chats of the demo domain to repeat texts, answer the
questions and write transcripts. No held-out text is generated. Takes minutes on one core; an interrupted run is
resumed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.common.loop_options import add_loop_options
from tools.demo.domain import LANGUAGES
from vita_audio.command_line import OneLineParser, check_files, in_range
from vita_audio.errors import one_line_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("train_text_lm", __doc__)
    parser.add_argument(
        "--config", type=Path, default=Path("configs/models/tiny_mtp0.json"), help="model config with the sizes"
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder written by tools.demo.make_tokenizer")
    parser.add_argument("--export", type=Path, required=True, help="folder for the trained model and its tokenizer")
    parser.add_argument("--start", type=Path, metavar="DIR", help="model to continue instead of one of --config")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=["en"], help="languages of the chats")
    parser.add_argument("--batch-size", type=in_range(int, minimum=1), default=48, help="chats per step")
    add_loop_options(parser, steps=2500, lr=2e-3, warmup=150)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("train_text_lm"):
        check_files(args.config)
        from tools.demo.text_lm_training import prepare

        train = prepare(args)
    train()


if __name__ == "__main__":
    main()

"""Train the speech decoder in one voice: `vocoder` (mel to wave, HiFT) and `flow` (codes to mel, flow matching).

The vocoder needs only recordings and can train while the tokenizer does; the flow needs the trained tokenizer. With
`--reader`, a phone recogniser that `reader` trains, the flow also learns to keep phones apart. Interrupted runs are
resumed. `export` combines vocoder and flow into a decoder folder; the vocoder may be that of another one.

    python -m tools.codec.train_decoder vocoder --corpus DIR --voice joe --output RUN/vocoder
    python -m tools.codec.train_decoder reader --corpus DIR --voice joe --output RUN/reader
    python -m tools.codec.train_decoder flow --corpus DIR --voice joe --tokenizer RUN/tokenizer --reader RUN/reader \\
        --output RUN/flow
    python -m tools.codec.train_decoder export --vocoder RUN/vocoder --flow RUN/flow --output RUN/decoder
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.common.loop_options import add_loop_options
from vita_audio.command_line import OneLineParser, check_files, in_range
from vita_audio.errors import one_line_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("train_decoder", __doc__)
    count = in_range(int, minimum=1)
    commands = parser.add_subparsers(dest="command", required=True)
    vocoder = commands.add_parser("vocoder", help="mel to wave")
    add_loop_options(vocoder, steps=3000, lr=1e-3)
    vocoder.add_argument("--frames", type=count, default=40, help="mel frames per segment")
    vocoder.add_argument("--batch-size", type=count, default=12, help="segments per step")
    vocoder.add_argument("--max-clips", type=count, default=1500, help="recordings to draw segments from")
    reader = commands.add_parser("reader", help="mel to phones, for training the flow")
    add_loop_options(reader, steps=1500, lr=2e-3)
    flow = commands.add_parser("flow", help="codes to mel")
    add_loop_options(flow, steps=14000, lr=1e-3)
    flow.add_argument("--tokenizer", type=Path, required=True, help="folder of the speech tokenizer")
    flow.add_argument("--prior-steps", type=int, default=6000, help="first steps, which train only the prior")
    flow.add_argument("--reader", type=Path, help="run folder of `reader`; adds its losses to that of the prior")
    flow.add_argument("--start-tokenizer", type=Path, help="tokenizer of --start-from; may be --tokenizer")
    flow.add_argument("--joined", type=int, default=600, help="pieces of several recordings")
    flow.add_argument("--disguised", type=int, default=3000, help="pieces in a changed voice")
    flow.add_argument("--shifted", type=int, default=0, help="recordings delayed by a fraction of a code")
    for command, part in ((vocoder, "vocoder"), (flow, "flow")):
        command.add_argument("--start-from", type=Path, help=f"decoder folder whose {part} is trained further")
    for command in (reader, flow):
        command.add_argument("--frames-per-batch", type=count, default=2600, help="mel frames per step")
    for command in (vocoder, reader, flow):
        command.add_argument("--corpus", type=Path, required=True, help="folder with manifest.jsonl")
        command.add_argument("--voice", required=True, help="voice to train on")
        command.add_argument("--held-out", type=int, default=24, help="validation recordings")
    export = commands.add_parser("export", help="write the decoder folder")
    export.add_argument("--vocoder", type=Path, required=True, help="run of the vocoder, or a decoder folder")
    export.add_argument("--flow", type=Path, required=True, help="run folder of the flow")
    export.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args(arguments)
    if args.command == "flow":
        if args.start_from and not args.start_tokenizer:
            flow.error("--start-from needs the tokenizer of its codes as --start-tokenizer")
        if not args.start_from and args.prior_steps >= args.steps:
            flow.error(f"--prior-steps {args.prior_steps} must leave steps for the UNet, got --steps {args.steps}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("train_decoder"):
        if args.command == "export":
            check_files(args.flow / "checkpoint.pt")
        if args.command == "flow" and args.reader:
            check_files(args.reader / "checkpoint.pt", args.reader / "phones.json")
        from tools.codec.decoder_training import export, prepare_flow, prepare_vocoder
        from tools.codec.phone_reader import prepare_reader

        if args.command == "export":
            export(args.vocoder, args.flow, args.output)
            return
        train = {"vocoder": prepare_vocoder, "reader": prepare_reader, "flow": prepare_flow}[args.command](args)
    train()


if __name__ == "__main__":
    main()

"""Train a small GLM-4-Voice style speech tokenizer (WhisperVQEncoder, 12.5 codes per second) on a corpus folder.

The encoder learns from two CTC losses on phones (or letters, if the manifest has no phones) of all voices, and from an
L1 loss on the mel of the decoder's voice. An interrupted run is resumed. Writes a folder like the released
glm-4-voice-tokenizer.

    python -m tools.codec.train_tokenizer --corpus DIR --voice joe --output RUN
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.common.loop_options import add_loop_options
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.errors import one_line_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("train_tokenizer", __doc__)
    count = in_range(int, minimum=1)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--voice", required=True, help="voice whose mel is predicted, the decoder's")
    add_loop_options(parser, steps=12000, lr=1e-3)
    parser.add_argument(
        "--batch-seconds", type=in_range(float, above=0), default=30.0, help="speech per step, in seconds"
    )
    parser.add_argument("--codes", type=count, default=512, help="codebook size")
    parser.add_argument("--width", type=in_range(int, minimum=4), default=192, help="width of the encoder")
    ffn = "width of feed-forward layers; below that of a Whisper model to start from, its strongest units are kept"
    parser.add_argument("--ffn", type=count, default=640, help=ffn)
    parser.add_argument("--heads", type=count, default=4, help="attention heads per layer; must divide --width")
    parser.add_argument("--layers", type=count, default=3, help="layers at 50 Hz")
    parser.add_argument(
        "--code-layers", type=in_range(int, minimum=0), default=1, help="layers at 12.5 Hz, which follow"
    )
    parser.add_argument("--mel-bins", type=in_range(int, minimum=13), default=80, help="bands of the input features")
    parser.add_argument(
        "--speech-level",
        type=in_range(float, minimum=0),
        default=0.11,
        help="level (RMS) that the tokenizer brings speech to, in a frame of silence; 0: it takes waves as they are",
    )
    parser.add_argument(
        "--start-from", type=Path, help="folder of a tokenizer, or of a Whisper model, whose encoder is trained further"
    )
    parser.add_argument("--quantize-from", type=int, default=1500, help="step at which quantisation starts")
    parser.add_argument("--mel-weight", type=in_range(float, minimum=0), default=1.0, help="factor of the mel loss")
    parser.add_argument("--held-out", type=int, default=100, help="validation utterances per kind of voice")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("train_tokenizer"):
        from tools.codec.tokenizer_training import prepare

        train = prepare(args)
    train()


if __name__ == "__main__":
    main()

"""Train a small speech encoder of SenseVoice's design on transcribed speech, with its own CTC head on text tokens.

    python -m tools.codec.train_encoder --corpus DIR --output RUN
    python -m tools.codec.train_encoder --data asr.jsonl --output RUN   # recognition samples in the training format

The encoder has the sizes under `audio_config` in a model config; its targets are the tokens of a text tokenizer. An
interrupted run is resumed. Writes a folder like SenseVoiceSmall (`model.safetensors`, `am.mvn`) for the first Plus
stage: AUDIO_MODEL_NAME_OR_PATH=RUN/encoder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.common.loop_options import add_loop_options
from vita_audio.command_line import OneLineParser, check_files, in_range
from vita_audio.errors import one_line_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("train_encoder", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", type=Path, help="folder with manifest.jsonl")
    source.add_argument("--data", type=Path, help="jsonl file of recognition samples, as for training a model")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/models/tiny_sensevoice_mtp0.json"), help="model config"
    )
    parser.add_argument("--tokenizer", default="vita_audio/assets/tiny_text_lm", help="text tokenizer")
    add_loop_options(parser, steps=6000, lr=1e-3)
    parser.add_argument(
        "--batch-seconds", type=in_range(float, above=0), default=40.0, help="speech per step, in seconds"
    )
    parser.add_argument("--held-out", type=int, default=100, help="validation utterances")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("train_encoder"):
        check_files(args.config)
        from tools.codec.encoder_training import prepare

        train = prepare(args)
    train()


if __name__ == "__main__":
    main()

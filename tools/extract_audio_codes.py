"""Encode the audio of a data yaml to codes, once, before training.

    python tools/extract_audio_codes.py --data data/demo/stage1.yaml --codes outputs/codes --processes 2

Goes on where an earlier run stopped; files that cannot be read are counted and named, and tried again the next time.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from vita_audio.audio_tokenizers import TYPES, get_audio_tokenizer, is_continuous
from vita_audio.data.codes import AudioCodeStore, extract_codes
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.errors import one_line_errors
from vita_audio.text import (
    CONTINUOUS_INPUT,
    DISCRETE,
    DISCRETE_INPUT,
    check_audio_input,
    parse_audio_input,
    roles_with,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, type=Path, help="data yaml files")
    parser.add_argument("--codes", required=True, type=Path, help="folder of the code store")
    parser.add_argument(
        "--seed", type=int, default=42, help="of the training run: chooses the rows of a source with ratio or num"
    )
    parser.add_argument("--audio-tokenizer-type", default="glm4voice", choices=sorted(TYPES))
    parser.add_argument(
        "--audio-input",
        nargs="+",
        default=[],
        metavar="ROLE=HOW",
        help="which roles need codes: discrete or both, and which do not: continuous (default: as the type says)",
    )
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    parser.add_argument("--processes", type=int, default=0, help="processes that encode; 0: this one")
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["cuda" if torch.cuda.is_available() else "cpu"],
        help="devices for the processes in turn, such as cuda:0 cuda:1",
    )
    return parser.parse_args(arguments)


def extract(options: argparse.Namespace) -> None:
    make_tokenizer = partial(get_audio_tokenizer, options.audio_tokenizer_type, options.audio_tokenizer_path)
    by_type = CONTINUOUS_INPUT if is_continuous(options.audio_tokenizer_type) else DISCRETE_INPUT
    roles = roles_with(check_audio_input({**by_type, **parse_audio_input(options.audio_input)}), DISCRETE)
    mixtures = [load_mixture(data, options.seed) for data in options.data]
    paths = {path: None for mixture in mixtures for path in referenced_audio(mixture, roles)}
    store = AudioCodeStore(options.codes, make_tokenizer(device="cpu").fingerprint)
    report = extract_codes(
        paths, store, make_tokenizer, devices=options.devices, num_workers=options.processes, progress=True
    )
    print(report.summary())
    print(f"{len(store)} entries in {store.path}")


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("extract_audio_codes.py"):
        extract(options)


if __name__ == "__main__":
    main()

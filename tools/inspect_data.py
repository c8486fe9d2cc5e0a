"""Show the encoded samples of a data yaml: text, ids, labels, chunks, audio lengths, and how full the packs are.

    python tools/inspect_data.py --data data/demo/stage1.yaml --tokenizer outputs/tokenizer --codes outputs/codes

Tokens with a loss are green (text) or magenta (audio); the others are grey (text), blue (audio codes) or cyan (rows of
the speech encoder of a Plus model). With --json, one JSON object is printed.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from vita_audio.command_line import OneLineParser, add_codec_options, check_files, in_range, plan_name
from vita_audio.errors import one_line_errors
from vita_audio.interleave import InterleavePlan

# (kind of chunk, whether it is learnt) -> ANSI foreground color
COLORS = {("text", True): 32, ("audio", True): 35, ("text", False): 90, ("audio", False): 34, ("rows", False): 36}
CODES_SHOWN = 6  # per audio chunk


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("inspect_data", __doc__)
    add, count = parser.add_argument, in_range(int, minimum=0)
    add("--data", required=True, type=Path, help="data yaml")
    add("--tokenizer", required=True, help="text tokenizer: a folder or hub name")
    add("--codes", required=True, type=Path, help="folder of the code store")
    add_codec_options(parser, for_data=True)
    add("--ratio", type=plan_name, default="boost", help="interleave plan: a name, or a ratio such as 1,10,4,10")
    add("--max-length", type=in_range(int, minimum=1), default=8192, help="tokens in a pack")
    add("--user-audio-loss-weight", type=in_range(float, minimum=0), default=0.0)
    add("--seed", type=int, default=42, help="seed for the order of the mixture")
    add("--num-samples", type=count, default=3, help="number of samples to show, in training order")
    add("--no-packs", action="store_true", help="skip packing, which encodes the whole mixture")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def format_sample(sample: dict[str, Any], color: bool) -> str:
    """Format a sample of `inspect_row` for the terminal."""
    place = f"{sample['file']}:{sample['line']}"
    if "error" in sample:
        return f"{place}: left out: {sample['error']}"
    lines = [f"{place}  {sample['num_tokens']} tokens, {sample['num_targets']} learnt"]
    for audio in sample["audios"]:
        seconds = audio["seconds"] or math.inf
        counts = {name: audio[f"num_{name}"] for name in ("rows", "codes")}
        amounts = [f"{count} {name} ({count / seconds:.1f}/s)" for name, count in counts.items() if count]
        lines.append(
            f"  {audio['role']:9} {audio['seconds']:7.2f} s  {audio['sample_rate']} Hz  {audio['channels']} channel  "
            f"{', '.join(amounts)}  {audio['file']}"
        )
    parts = []
    for chunk in sample["chunks"]:
        text = chunk.get("text", "")
        if chunk["kind"] == "audio":
            codes = chunk["codes"]
            dots = " ..." if len(codes) > CODES_SHOWN else ""
            text = f"[{len(codes)} codes: {' '.join(map(str, codes[:CODES_SHOWN]))}{dots}]"
        elif chunk["kind"] == "rows":
            text = f"[{chunk['stop'] - chunk['start']} rows]"
        code = COLORS[chunk["kind"], chunk["learnt"]]
        parts.append(f"\033[{code}m{text}\033[0m" if color else text)
    return "\n".join([*lines, "", "".join(parts)])


def inspect(options: argparse.Namespace) -> None:
    """Print the samples, then a report on the packs, or the codes that packing lacks."""
    check_files(options.data)
    from vita_audio.audio_tokenizers import get_audio_tokenizer, is_continuous
    from vita_audio.data.codes import AudioCodeStore, MissingCodesError
    from vita_audio.data.inspection import inspect_row
    from vita_audio.data.mixture import load_mixture
    from vita_audio.data.packing import build_packs
    from vita_audio.text import TextTokenizer, parse_audio_input

    audio_tokenizer = get_audio_tokenizer(options.audio_tokenizer_type, options.audio_tokenizer_path)
    tokenizer = TextTokenizer.from_pretrained(
        options.tokenizer,
        audio_tokenizer.vocab_size,
        continuous_input=is_continuous(options.audio_tokenizer_type),
        audio_input=parse_audio_input(options.audio_input),
    )
    store = AudioCodeStore(options.codes, audio_tokenizer.fingerprint, read_only=True)
    mixture = load_mixture(options.data, options.seed)
    files = [source.file for source in mixture.sources]
    shown = mixture.rows.select(range(min(options.num_samples, len(mixture.rows))))
    encoding = {"tokenizer": tokenizer, "store": store, "plan": InterleavePlan.parse(options.ratio)}
    encoding["user_audio_loss_weight"] = options.user_audio_loss_weight
    samples = [inspect_row(row, files[row["source"]], **encoding) for row in shown]
    if not options.json:
        for sample in samples:
            print(format_sample(sample, color=sys.stdout.isatty()), end="\n\n")
        for source in mixture.sources:
            print(f"{source.name}: {source.num_used} of {source.num_samples} samples from {source.file}")
    report = problem = None
    if not options.no_packs:
        try:
            _, report = build_packs(
                options.data, max_length=options.max_length, seed=options.seed, progress=sys.stderr.isatty(), **encoding
            )
        except MissingCodesError as error:
            problem = str(error)
    if options.json:
        packs = {"error": problem} if problem else report and report.to_json()
        print(json.dumps({"samples": samples, "packs": packs}, ensure_ascii=False))
    elif not options.no_packs:
        print(f"no packs: {problem}" if problem else report.summary())


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("inspect_data"):
        inspect(options)


if __name__ == "__main__":
    main()

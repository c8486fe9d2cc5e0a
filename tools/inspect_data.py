"""Show what the samples of a data yaml turn into: text, ids, labels, chunks, audio lengths, and how full packs are.

    python tools/inspect_data.py --data data/demo/stage1.yaml --tokenizer outputs/tokenizer --codes outputs/codes

Learnt tokens are green (text) and magenta (audio); the others are grey (text), blue (audio) and cyan (audio that enters
a Plus model as rows of its speech encoder). With --json, one JSON object is printed.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from vita_audio.command_line import (
    OneLineParser,
    add_audio_input_option,
    add_codec_options,
    check_files,
    in_range,
    plan_name,
)
from vita_audio.errors import one_line_errors
from vita_audio.interleave import InterleavePlan

COLORS = {  # ANSI foreground
    ("text", True): 32,
    ("audio", True): 35,
    ("text", False): 90,
    ("audio", False): 34,
    ("rows", False): 36,
}
CODES_SHOWN = 6  # per audio chunk


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("inspect_data", __doc__)
    parser.add_argument("--data", required=True, type=Path, help="data yaml")
    parser.add_argument("--tokenizer", required=True, help="text tokenizer: a folder or hub name")
    parser.add_argument("--codes", required=True, type=Path, help="folder of the code store")
    add_codec_options(parser, decoder=False)
    add_audio_input_option(parser)
    parser.add_argument(
        "--ratio", type=plan_name, default="boost", help="interleave plan: a name, or a ratio such as 1,10,4,10"
    )
    parser.add_argument("--max-length", type=in_range(int, minimum=1), default=8192, help="tokens in a pack")
    parser.add_argument("--user-audio-loss-weight", type=in_range(float, minimum=0), default=0.0)
    parser.add_argument("--seed", type=int, default=42, help="seed for the order of the mixture")
    parser.add_argument(
        "--num-samples",
        type=in_range(int, minimum=0),
        default=3,
        help="samples to show, the first ones in training order",
    )
    parser.add_argument("--no-packs", action="store_true", help="skip packing, which encodes the whole mixture")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def format_sample(sample: dict[str, Any], color: bool) -> str:
    """Return the lines to print about a sample of `inspect_row`."""
    lines = [f"{sample['file']}:{sample['line']}"]
    if "error" in sample:
        return f"{lines[0]}: left out: {sample['error']}"
    lines[0] += f"  {sample['num_tokens']} tokens, {sample['num_targets']} learnt"
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
    """Print the samples, then the packs; missing codes are reported in their place."""
    check_files(options.data)
    from vita_audio.audio_tokenizers import get_audio_tokenizer, is_continuous
    from vita_audio.data.codes import AudioCodeStore, MissingCodesError
    from vita_audio.data.inspection import inspect_row
    from vita_audio.data.mixture import load_mixture
    from vita_audio.data.packing import build_packs
    from vita_audio.text import TextTokenizer, parse_audio_input

    plan, weight = InterleavePlan.parse(options.ratio), options.user_audio_loss_weight
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
    samples = [
        inspect_row(
            row, files[row["source"]], tokenizer=tokenizer, store=store, plan=plan, user_audio_loss_weight=weight
        )
        for row in shown
    ]
    if not options.json:
        for sample in samples:
            print(format_sample(sample, color=sys.stdout.isatty()), end="\n\n")
        for source in mixture.sources:
            print(f"{source.name}: {source.num_used} of {source.num_samples} samples from {source.file}")
    report = problem = None
    if not options.no_packs:
        try:
            _, report = build_packs(
                options.data,
                tokenizer,
                store,
                plan,
                options.max_length,
                user_audio_loss_weight=weight,
                seed=options.seed,
                progress=sys.stderr.isatty(),
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

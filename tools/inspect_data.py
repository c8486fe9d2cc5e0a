"""Show what the samples of a data yaml turn into: text, ids, labels, chunks, audio lengths, and how well packs fill.

    python tools/inspect_data.py --data data/demo/stage1.yaml --tokenizer outputs/tokenizer --codes outputs/codes

Green text and magenta audio are learnt; grey text and blue audio are not, nor is cyan audio, which enters a Plus model
as rows of its speech encoder. With --json one JSON object is printed.
"""

import argparse
import json
import math
import sys
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import soundfile

from vita_audio.audio_tokenizers import TYPES, get_audio_tokenizer, is_continuous
from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.audio import AudioError
from vita_audio.data.chat import EncodedConversation, SampleError, encode_conversation
from vita_audio.data.codes import AudioCodeStore, MissingCodesError
from vita_audio.data.mixture import load_mixture, resolve
from vita_audio.data.packing import build_packs, stored_audio_ids
from vita_audio.errors import one_line_errors
from vita_audio.interleave import InterleavePlan
from vita_audio.text import TextTokenizer, parse_audio_input

COLORS = {  # ANSI foreground
    ("text", True): 32,
    ("audio", True): 35,
    ("text", False): 90,
    ("audio", False): 34,
    ("rows", False): 36,
}
CODES_SHOWN = 6  # of an audio chunk


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="data yaml")
    parser.add_argument("--tokenizer", required=True, help="text tokenizer: a folder or hub name")
    parser.add_argument("--codes", required=True, type=Path, help="folder of the code store")
    parser.add_argument("--audio-tokenizer-type", default="glm4voice", choices=sorted(TYPES))
    parser.add_argument(
        "--audio-input",
        nargs="+",
        default=[],
        metavar="ROLE=HOW",
        help="how audio of a role enters: discrete, continuous or both (default: as text tokenizer or type say)",
    )
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    parser.add_argument("--ratio", default="boost", help="text/audio ratio: a name, or numbers such as 1,10,4,10")
    parser.add_argument("--max-length", type=int, default=8192, help="tokens in a pack")
    parser.add_argument("--user-audio-loss-weight", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=42, help="of the mixture's order")
    parser.add_argument("--num-samples", type=int, default=3, help="samples to show, the first in training order")
    parser.add_argument("--no-packs", action="store_true", help="do not encode the whole mixture to see its packs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def find_chunks(encoded: EncodedConversation, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Cut a document where text and audio, or what is learnt and what is not, change."""
    kinds = ["audio" if tokenizer.is_audio(token_id) else "text" for token_id in encoded.input_ids]
    for span in encoded.audio_spans:
        kinds[span.start + 1 : span.start + 1 + span.num_rows] = ["rows"] * span.num_rows
    learnt = [label != IGNORE_INDEX for label in encoded.labels]
    chunks, start = [], 0
    for (kind, is_learnt), group in groupby(zip(kinds, learnt, strict=True)):
        stop = start + len(list(group))
        ids = encoded.input_ids[start:stop]
        chunk = {"kind": kind, "learnt": is_learnt, "start": start, "stop": stop}
        if kind == "text":
            chunk["text"] = tokenizer.base.decode(ids)
        elif kind == "audio":
            chunk["codes"] = tokenizer.split(ids)[1]
        chunks.append(chunk)
        start = stop
    return chunks


def describe_audio(encoded: EncodedConversation, folder: Path) -> list[dict[str, Any]]:
    audios = []
    for span in encoded.audio_spans:
        info = soundfile.info(str(resolve(span.audio, folder)))
        audios.append(
            {
                "file": span.audio,
                "role": span.role,
                "seconds": round(info.duration, 3),
                "sample_rate": info.samplerate,
                "channels": info.channels,
                "num_codes": span.num_ids - span.num_rows,
                "num_rows": span.num_rows,
                "start": span.start,
                "stop": span.stop,
            }
        )
    return audios


def inspect_row(
    row: dict[str, Any], file: str, options: argparse.Namespace, *, tokenizer: TextTokenizer, store: AudioCodeStore
) -> dict[str, Any]:
    folder = Path(file).parent
    place = {"file": file, "line": row["line"]}
    try:
        encoded = encode_conversation(
            json.loads(row["sample"]),
            tokenizer,
            partial(stored_audio_ids, tokenizer=tokenizer, store=store, folder=folder),
            InterleavePlan.parse(options.ratio),
            user_audio_loss_weight=options.user_audio_loss_weight,
        )
    except (SampleError, AudioError, MissingCodesError, OSError) as error:
        return {**place, "error": str(error)}
    return {
        **place,
        "num_tokens": len(encoded.input_ids),
        "num_targets": sum(label != IGNORE_INDEX for label in encoded.labels),
        "audios": describe_audio(encoded, folder),
        "chunks": find_chunks(encoded, tokenizer),
        "text": tokenizer.decode(encoded.input_ids),
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "loss_weights": encoded.loss_weights,
    }


def format_sample(sample: dict[str, Any], color: bool) -> str:
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
    """Print the samples, then the packs; a sample or a mixture whose codes are missing only says so."""
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
    samples = [inspect_row(row, files[row["source"]], options, tokenizer=tokenizer, store=store) for row in shown]
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
                InterleavePlan.parse(options.ratio),
                options.max_length,
                user_audio_loss_weight=options.user_audio_loss_weight,
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
    with one_line_errors("inspect_data.py"):
        inspect(options)


if __name__ == "__main__":
    main()

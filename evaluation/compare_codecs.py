"""Compare audio tokenizers on a folder of speech: how their speech sounds, what is understood of it, at what rate.

    python -m evaluation.compare_codecs --audio DIR --output outputs/codecs --codec glm4voice \\
        --codec glm4voice=glm-4-voice-tokenizer,glm-4-voice-decoder --codec snac24khz=snac_24khz \\
        --codec cosyvoice2=CosyVoice2-0.5B,CosyVoice2-0.5B --codec sparktts=Spark-TTS-0.5B

Texts, of all clips or of none, come from `manifest.jsonl` or from `NAME.txt` beside `NAME.wav`; without them words are
compared with those heard in the originals. A codec whose codes do not say who speaks gets the voice of each clip.
Leaves the decoded waves, `codecs.json`, `codecs.md`, and pictures: spectrograms of a clip after each codec, errors over
bits per second.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evaluation.evaluate_codec import evaluate_corpus, hear_originals, read_corpus, shown
from evaluation.judges import get_judge
from evaluation.reporting.plots import draw_codecs, draw_spectrograms
from vita_audio.audio_tokenizers import AudioTokenizer, get_audio_tokenizer
from vita_audio.errors import one_line_errors
from vita_audio.inference.pipeline import resolve_device

COLUMNS = {  # of the table: key of the figures, header, how it is written
    "codes_per_second": ("codes/s", "{:.1f}"),
    "bits_per_second": ("bits/s", "{:.0f}"),
    "bits_per_second_used": ("bits/s used", "{:.0f}"),
    "codebook_size": ("codes", "{}"),
    "codes_used": ("codes used", "{}"),
    "codebook_perplexity": ("perplexity", "{:.0f}"),
    "mel_distance": ("mel distance", "{:.3f}"),
    "wer_original": ("WER of originals", "{:.1%}"),
    "wer": ("WER", "{:.1%}"),
    "encoding_cpu_seconds_per_second": ("encoding, CPU s per s", "{:.2f}"),
    "decoding_cpu_seconds_per_second": ("decoding, CPU s per s", "{:.2f}"),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="folder of speech")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--codec",
        action="append",
        required=True,
        metavar="TYPE[=PATH[,DECODER]]",
        help="an audio tokenizer and the folders of its weights; may be given repeatedly",
    )
    parser.add_argument("--judge", default="whisper_tiny_en", help="recogniser, or none (default: %(default)s)")
    parser.add_argument("--max-clips", type=int, help="use so many clips")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    return parser.parse_args(arguments)


def load_codecs(specifications: Sequence[str], device: str) -> dict[str, AudioTokenizer]:
    """Load `TYPE[=PATH[,DECODER]]` each, by the name of the type, numbered where it comes again.

    Raises: what `get_audio_tokenizer` raises.
    """
    codecs: dict[str, AudioTokenizer] = {}
    for specification in specifications:
        kind, _, folders = specification.partition("=")
        path, _, decoder_path = folders.partition(",")
        number = sum(name.partition("-")[0] == kind for name in codecs) + 1
        tokenizer = get_audio_tokenizer(kind, path or None, decoder_path or None, device=device)
        codecs[kind if number == 1 else f"{kind}-{number}"] = tokenizer
    return codecs


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Write the figures as a Markdown table, a row for each codec."""
    columns = {key: column for key, column in COLUMNS.items() if any(key in figures for figures in results.values())}
    lines = [
        "| codec | " + " | ".join(header for header, _ in columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, figures in results.items():
        cells = [form.format(figures[key]) if key in figures else "" for key, (_, form) in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(results: Mapping[str, Mapping], num_clips: int, judge: str | None) -> str:
    """Write `codecs.md`."""
    judged = f", judged by {judge}" if judge else ""
    words = "\n\n![errors over bits per second](codecs.png)" if judge else ""
    return (
        f"# Audio codecs on {num_clips} clips{judged}\n\n{table(results)}\n\n"
        "Bits per second are what the codes may carry, and what they do by how often each occurs. The mel distance is "
        "the mean difference of natural log-mels; decoders that make a voice of their own are far from the original "
        f"without being worse to listen to.{words}\n\n![spectrograms of one clip](spectrograms.png)\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("evaluation.compare_codecs"):
        clips = read_corpus(options.audio, options.max_clips)
        codecs = load_codecs(options.codec, resolve_device(options.device))
        judge = None if options.judge == "none" else get_judge(options.judge, num_threads=torch.get_num_threads())
    options.output.mkdir(parents=True, exist_ok=True)
    heard = hear_originals(clips, judge) if judge else []
    results = {}
    for name, tokenizer in codecs.items():
        results[name] = evaluate_corpus(clips, tokenizer, judge, heard, options.output / name)
        print(name, json.dumps(shown(results[name])))
    sounds = {"original": clips[0].path} | {name: options.output / name / f"{clips[0].name}.wav" for name in results}
    text = clips[0].text or clips[0].name
    draw_spectrograms({name: (path, text) for name, path in sounds.items()}, options.output / "spectrograms.png")
    if judge:
        draw_codecs(results, options.output / "codecs.png")
    summary = {"judge": judge.name if judge else None, "clips": len(clips), "codecs": results}
    (options.output / "codecs.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    markdown = report(results, len(clips), judge.name if judge else None)
    (options.output / "codecs.md").write_text(markdown, encoding="utf-8")
    print(f"wrote {options.output / 'codecs.md'}")


if __name__ == "__main__":
    main()

"""Make training data from recordings: clips with transcripts, checked, filtered and split, as JSON lines.

    python tools/prepare_speech.py --from recordings --output data/my_voice

Reads folders of audio with or without transcripts, LJSpeech, Common Voice, LibriSpeech, CSV, TSV and JSON lists,
WebDataset shards, parquet of Hugging Face, and Lhotse cuts and Shar. No audio is copied: samples name the original
files, places in archives, or stretches of recordings. Writes asr.jsonl and tts.jsonl with the mixture data.yaml for
training, manifest.jsonl for tools.codec, heldout_asr.jsonl and heldout_tts.jsonl for evaluation, rejections.jsonl,
summary.json and the page quality.html. The same command resumes an interrupted run; with other limits it selects again
without measuring again.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path

from vita_audio.command_line import OneLineParser, in_range
from vita_audio.errors import one_line_errors, one_line_run_errors

AUTO, NO_ASR = "auto", "none"
LAYOUTS = ("folder", "ljspeech", "common_voice", "librispeech", "list", "webdataset", "parquet", "lhotse")
RECOGNISER = (
    "whisper_tiny_en, the folder of a Whisper model, KIND:MODEL as in evaluation.run, or none to trust all texts"
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("prepare_speech", __doc__)
    add, number, share = parser.add_argument, in_range(float, minimum=0), in_range(float, minimum=0, maximum=1)
    add("--from", required=True, type=Path, dest="source", metavar="PATH", help="folder, list or archive")
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    add("--format", choices=(AUTO, *LAYOUTS), default=AUTO, help="layout of --from")
    add("--asr", default="whisper_tiny_en", metavar="MODEL", help=RECOGNISER)
    add("--language", default="en", help="language of the recordings")
    add("--threads", type=in_range(int, minimum=1), help="clips transcribed at a time (default: threads of torch)")
    add("--no-split", action="store_true", help="take each recording as one clip, without voice activity detection")
    add("--pause", type=number, default=0.6, help="seconds of silence at which recordings without text are split")
    add("--longest-clip", type=in_range(float, minimum=2), default=20.0, help="seconds to split them at the latest")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--min-seconds", type=number, default=0.5)
    limits.add_argument("--max-seconds", type=number, default=30.0)
    limits.add_argument("--min-level", type=float, default=-45.0, help="root mean square, dB of full scale")
    limits.add_argument("--max-clipped", type=share, default=0.001, help="share of samples at full scale")
    limits.add_argument("--min-snr", type=float, default=10.0, help="estimated speech over noise, dB")
    limits.add_argument("--max-wer", type=number, default=0.3, help="share of words that may differ; one always may")
    limits.add_argument("--max-speed", type=number, default=35.0, help="characters per second")
    limits.add_argument("--renditions", type=in_range(int, minimum=1), default=1, help="of one text by one speaker")
    limits.add_argument("--held-out", type=share, default=0.05, help="share of clips that is not trained on")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    """Measure the recordings, choose clips, write all files and print the counts."""
    from tqdm import tqdm

    from evaluation.judges import get_judge
    from evaluation.metrics.ours import scored_tokens
    from evaluation.run_folder import keep_settings
    from tools.corpora.clip_store import ClipStore
    from tools.corpora.formats import find_format, read_corpus
    from tools.corpora.measuring import Cutter, measure_corpus
    from tools.corpora.output import summarise, write_corpus
    from tools.corpora.quality_page import write_page
    from tools.corpora.selection import Limits, select_clips
    from tools.corpora.voice_activity import Splitting
    from vita_audio.files.atomic import write_json
    from vita_audio.serve.turns import load_vad

    layout = find_format(options.source) if options.format == AUTO else options.format
    scored_tokens("", options.language)  # raises for a language without rules
    options.output.mkdir(parents=True, exist_ok=True)
    names = ("source", "asr", "language", "no_split", "pause", "longest_clip")
    settings = {"format": layout} | {name: str(getattr(options, name)) for name in names}
    keep_settings(options.output, settings)
    judge = None if options.asr == NO_ASR else get_judge(options.asr, options.threads, language=options.language)
    cutter = Cutter(None if options.no_split else load_vad(), Splitting(options.pause, options.longest_clip))
    count = sum(1 for _ in read_corpus(options.source, layout))
    if not count:
        raise ValueError(f"{options.source}: no recordings found in the layout {layout}; --format chooses another")
    found = tqdm(read_corpus(options.source, layout), desc="measuring", total=count, unit="recording", smoothing=0.02)
    limits = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})
    with closing(ClipStore(options.output / "clips.sqlite")) as store:
        measure_corpus(found, store, cutter, judge, options.language)
        summary = summarise(store.database, select_clips(store, limits))
        write_corpus(options.output, store.database)
        write_json(options.output / "summary.json", summary)
        write_page(options.output / "quality.html", store.database, limits, summary, settings | asdict(limits))
    print(f"{options.output}: {describe(summary)}")
    if "train" not in summary["parts"]:
        raise ValueError(f"no clip can be used, see {options.output / 'rejections.jsonl'}")


def describe(summary: dict) -> str:
    """Return the counts of a corpus in one line."""
    sizes = [f"{part} {size['clips']} clips ({size['minutes']:.1f} min)" for part, size in summary["parts"].items()]
    reasons = ", ".join(f"{kind} {count}" for kind, count in summary["rejections"].items())
    return "; ".join([*sizes, f"rejections: {reasons or 'none'}"])


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_run_errors("prepare_speech"), one_line_errors("prepare_speech"):
        prepare(options)


if __name__ == "__main__":
    main()

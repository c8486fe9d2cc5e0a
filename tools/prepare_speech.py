"""Make training data from recordings: clips with transcripts, checked, filtered and split, as JSON lines.

    python tools/prepare_speech.py --from recordings --output data/my_voice

Reads folders of audio with or without transcripts, LJSpeech, Common Voice, LibriSpeech, CSV, TSV and JSON lists,
WebDataset shards, parquet of Hugging Face, and Lhotse cuts and Shar. No audio is copied: samples name the original
files, places in archives, or stretches of recordings. Writes asr.jsonl and tts.jsonl with the mixture data.yaml for
training, manifest.jsonl for tools.codec, heldout_asr.jsonl and heldout_tts.jsonl for evaluation, rejections.jsonl,
summary.json and the page quality.html. The same command resumes an interrupted run; with other limits it selects again
without measuring again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vita_audio.command_line import OneLineParser, in_range
from vita_audio.workers import run_module

AUTO, NO_ASR = "auto", "none"
LAYOUTS = ("folder", "ljspeech", "common_voice", "librispeech", "list", "webdataset", "parquet", "lhotse")
LIMITS = (
    *("min_seconds", "max_seconds", "min_level", "max_clipped", "min_snr", "max_wer", "max_speed", "renditions"),
    *("held_out", "speaker"),
)
RECOGNISER = (
    "whisper_tiny_en, the folder of a Whisper model, KIND:MODEL as in evaluation.run, or none to trust all texts"
)


def parse_arguments(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line; return the settings of `tools.corpora.preparation`."""
    parser = OneLineParser("prepare_speech", __doc__)
    add, number, share = parser.add_argument, in_range(float, minimum=0), in_range(float, minimum=0, maximum=1)
    add("--from", required=True, type=Path, dest="source", metavar="PATH", help="folder, recording, list or archive")
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    add("--format", choices=(AUTO, *LAYOUTS), default=AUTO, help="layout of --from")
    add("--asr", default="whisper_tiny_en", metavar="MODEL", help=RECOGNISER)
    add("--language", default="en", help="language of the recordings")
    add("--threads", type=in_range(int, minimum=1), help="clips transcribed at a time (default: threads of torch)")
    add("--no-split", action="store_true", help="take each recording as one clip, without voice activity detection")
    add(
        "--pause",
        type=number,
        default=0.6,
        help="seconds of silence at which long recordings, and those without text, are split",
    )
    add("--longest-clip", type=in_range(float, minimum=2), default=20.0, help="seconds to split them at the latest")
    add_limit = parser.add_argument_group("limits").add_argument
    add_limit("--min-seconds", type=number, default=0.5)
    add_limit("--max-seconds", type=number, default=30.0)
    add_limit("--min-level", type=float, default=-45.0, help="root mean square, dB of full scale")
    add_limit("--max-clipped", type=share, default=0.001, help="share of samples at full scale")
    add_limit("--min-snr", type=float, default=10.0, help="estimated speech over noise, dB")
    add_limit("--max-wer", type=number, default=0.3, help="share of words that may differ; one always may")
    add_limit("--max-speed", type=number, default=35.0, help="characters per second")
    add_limit("--renditions", type=in_range(int, minimum=1), default=1, help="of one text by one speaker")
    add_limit("--held-out", type=share, default=0.05, help="share of clips that is not trained on")
    add_limit("--speaker", metavar="NAME", help="use the clips of this speaker only")
    settings = vars(parser.parse_args(arguments))
    return settings | {"limits": {name: settings.pop(name) for name in LIMITS}}


def main(arguments: Sequence[str] | None = None) -> None:
    run_module("tools.corpora.preparation", parse_arguments(arguments))


if __name__ == "__main__":
    main()

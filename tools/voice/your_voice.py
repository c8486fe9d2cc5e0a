"""Give a model the voice of your recordings: prepare them, fine-tune the speech decoder, report.

    bash scripts/your_voice.sh recordings            # installs the requirements, then runs this program
    bash scripts/your_voice.sh recordings --dry_run  # memory and time only

RECORDINGS is anything that tools/prepare_speech.py reads: a folder of audio with or without transcripts, a CSV, an
archive. Five minutes of one speaker are enough for the embedded decoder, half a minute is the least. The language model
keeps speaking the same codes, so only the decoder, which gives them their sound, is trained. report.html has players,
likeness and word errors before and after. The same command resumes an interrupted run.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.demo.steps import ROOT, Progress, Step, flags_of, open_folder, read_path, run_steps, seen_from_root
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.errors import one_line_errors

DEMO_MODEL = Path("vita_audio/assets/demo_model")
DEFAULT_FOLDER = Path("outputs/your_voice")
MARK = "your_voice.json"
HELD_OUT = 0.1  # share of the clips that only the report hears
# The decoder learns sound, not text: a doubtful transcript and a repeated text do no harm.
LIMITS = {"held-out": HELD_OUT, "max-wer": 1.0, "renditions": 1000}
USUAL_MINUTES = {"recordings": 1, "voice": 13, "report": 2}


@dataclass(frozen=True)
class Run:
    """One run; paths are as seen from the repository.

    Attributes:
        tokenizer: Folder of the speech tokenizer; None: the embedded one. The same for `decoder`.
        steps: Most training steps of the flow; None: as `finetune_voice` has it.
    """

    recordings: str
    folder: Path
    model: str
    tokenizer: str | None
    decoder: str | None
    judge: str
    language: str
    speaker: str | None
    steps: int | None

    @property
    def decoder_folder(self) -> Path:
        return self.folder / "voice" / "decoder"

    def tuning_flags(self) -> list[str]:
        """Return the flags of tools.codec.finetune_voice."""
        folders = {"voice": self.folder / "data", "output": self.folder / "voice"}
        return _flags(folders | self._common() | {"steps": self.steps})

    def plan(self) -> list[Step]:
        """Return the steps: recordings to data, data to a decoder, and the report."""
        data, voice, report = self.folder / "data", self.folder / "voice", self.folder / "report.html"
        prepared = {"from": self.recordings, "output": data, "asr": self.judge, "language": self.language}
        prepared |= {"speaker": self.speaker} | LIMITS
        reported = {"folder": self.folder, "model": self.model} | self._common()
        python = [sys.executable, "-m"]
        preparing = [sys.executable, "tools/prepare_speech.py", *_flags(prepared)]
        tuning = [*python, "tools.codec.finetune_voice", *self.tuning_flags()]
        reporting = [*python, "tools.voice.report", *_flags(reported)]
        return [
            Step("recordings", "check and split the recordings", data / "summary.json", preparing),
            Step("voice", "fine-tune the speech decoder", voice / "voice.json", tuning),
            Step("report", "listen and report", report, reporting),
        ]

    def _common(self) -> dict[str, object]:
        names = ("tokenizer", "decoder", "judge", "language", "speaker")
        return {name: getattr(self, name) for name in names}


def _flags(values: dict[str, object]) -> list[str]:
    return flags_of({name: value for name, value in values.items() if value is not None})


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("scripts/your_voice.sh", __doc__)
    add = parser.add_argument
    add("recordings", type=Path, metavar="RECORDINGS", help="folder, list or archive")
    add("--model", help="model to talk to: a folder or hub name (default: the demo model of the package)")
    add("--audio-tokenizer-path", help="folder of its speech tokenizer (default: the embedded one)")
    add("--audio-decoder-path", help="folder of the speech decoder to fine-tune (default: the embedded one)")
    add("--output", type=Path, help=f"folder to write (default: {DEFAULT_FOLDER})")
    add("--speaker", help="speaker to learn, if the recordings have several")
    add("--language", default="en", help="language of the recordings")
    add("--judge", default="whisper_tiny_en", help="recogniser, as in evaluation.run")
    add("--steps", type=in_range(int, minimum=1), help="most training steps of the flow (default: finetune_voice's)")
    add("--dry_run", "--dry-run", action="store_true", help="print memory and time, and do nothing else")
    add("--fresh", action="store_true", help="delete the output folder and start over")
    add("--paths-from", type=Path, default=Path.cwd(), help="folder that paths are relative to")
    return parser.parse_args(arguments)


def check_recordings(path: Path) -> None:
    """Raise FileNotFoundError for a missing path, or for a folder without any file."""
    if not path.exists():
        raise FileNotFoundError(f"no {path}; give a folder of recordings")
    if path.is_dir() and not any(file.is_file() for file in path.rglob("*")):
        raise FileNotFoundError(f"{path} holds no files; give a folder of recordings")


def check_weights(run: Run) -> None:
    """Check judges, decoder and model, whose errors are better known before an hour of work than after it."""
    from tools.codec.voice_judging import VoiceJudge
    from vita_audio.audio_tokenizers import get_audio_tokenizer
    from vita_audio.audio_tokenizers.base import check_identity
    from vita_audio.files.checkpoint import find_checkpoint
    from vita_audio.models import SPEECH_CONFIGS, Qwen2MTPSenseVoiceConfig
    from vita_audio.models.loading import read_config

    VoiceJudge.load(run.judge, run.language)
    tokenizer = get_audio_tokenizer("glm4voice", run.tokenizer, run.decoder)
    if tokenizer.decoder is None:
        raise ValueError(
            f"--audio-tokenizer-path {run.tokenizer} needs --audio-decoder-path, the decoder of its release"
        )
    folder = find_checkpoint(run.model)
    config = read_config(folder, SPEECH_CONFIGS)
    if isinstance(config, Qwen2MTPSenseVoiceConfig):
        raise ValueError(
            f"--model must read audio as codes, got {run.model} with a speech encoder; the decoder made with another "
            "model of the same speech tokenizer fits it too"
        )
    if config.audio_tokenizer:
        check_identity(config.audio_tokenizer, tokenizer.identity, run.model)
    if run.language != "en" and (folder / "demo.json").is_file():
        raise ValueError(f"--language {run.language} needs another --model; {folder} speaks English only")


def print_result(run: Run) -> None:
    """Print the metrics, and how to talk to the model in the new voice."""
    report = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    print(f"\nJudged by {run.judge}, on recordings held out from training and on the model's own speech:")
    for name, row in report["rows"].items():
        low, high = (100 * value for value in row["wer_interval"])
        errors = f"word error rate {100 * row['wer']:.1f} % ({low:.1f} to {high:.1f})"
        print(f"{name:>38}: likeness {row['likeness']:.2f}, {errors}")
    talk = ["bash", "scripts/talk.sh", "--audio-decoder-path", str(run.decoder_folder)]
    if run.model != str(DEMO_MODEL):
        talk[2:2] = ["--model", run.model]
    if run.tokenizer:
        talk += ["--audio-tokenizer-path", run.tokenizer]
    print(f"\nIn {ROOT}:\nreport: {run.folder / 'report.html'}\ndecoder: {run.decoder_folder}")
    print(f"talk: {shlex.join(talk)}")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    with one_line_errors("your_voice"):
        os.chdir(args.paths_from)
        check_recordings(args.recordings)
    tokenizer, decoder = map(read_path, (args.audio_tokenizer_path, args.audio_decoder_path))
    run = Run(
        recordings=str(seen_from_root(args.recordings)),
        folder=seen_from_root(args.output) if args.output else DEFAULT_FOLDER,
        model=read_path(args.model) or str(DEMO_MODEL),
        tokenizer=tokenizer,
        decoder=decoder,
        judge=read_path(args.judge),
        language=args.language,
        speaker=args.speaker,
        steps=args.steps,
    )
    os.chdir(ROOT)
    steps, progress = run.plan(), Progress(run.folder / "done")
    was_done = not args.fresh and all(map(progress.is_done, steps))
    with one_line_errors("your_voice"):
        if not was_done:
            check_weights(run)
        if args.dry_run:
            from tools.codec import finetune_voice
            from tools.voice.outlook import print_outlook

            print_outlook(finetune_voice.parse_arguments(run.tuning_flags()))
            return 0
        settings = {name: str(value) for name, value in vars(run).items() if name != "folder"}
        open_folder(run.folder, settings, args.fresh, mark=MARK)
    if code := run_steps("your_voice", steps, progress, USUAL_MINUTES):
        return code
    print_result(run)
    took = f"{progress.minutes(steps):.1f} minutes"
    print(
        f"\nThis run is already finished (it took {took}); --fresh starts over." if was_done else f"\nDone in {took}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

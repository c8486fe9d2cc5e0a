"""Run the whole path at small size: demo corpus, audio codes, four training stages, evaluation, report.

    bash scripts/quickstart.sh            # installs what is needed, then runs this program
    bash scripts/quickstart.sh --long     # hours, for better figures
    bash scripts/quickstart.sh --fresh    # start over

Each step is a command of its own, printed before it runs. A finished step leaves a mark, so the same command continues
after an interruption, and says so when everything is done. The folder is outputs/quickstart, or with --long and --ci
outputs/quickstart_long and outputs/quickstart_ci.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE_SCRIPTS = ROOT / "scripts" / "deepspeed" / "sts_qwen25"
TEXT_MODEL = Path("vita_audio/assets/tiny_text_lm")
MARK = "quickstart.json"  # in a folder that is ours, with the settings it was made with
STOPPED_BY_USER = 130


@dataclass(frozen=True)
class Stage:
    """One training stage: a script of `STAGE_SCRIPTS` and what the tiny model needs different from the 7B model."""

    name: str
    script: str
    num_modules: int
    data: str
    flags: str


STAGES = (
    Stage("stage1", "finetune_glm4voice_stage1.sh", 0, "stage1.yaml", "--learning_rate 1.2e-3"),
    Stage("stage2", "finetune_glm4voice_mtp1_stage1.sh", 1, "mtp.yaml", "--learning_rate 1e-3"),
    Stage("stage3", "finetune_glm4voice_mtp10_stage1.sh", 10, "mtp.yaml", "--learning_rate 2e-3"),
    Stage("stage4", "finetune_glm4voice_mtp10_stage2.sh", 10, "stage4.yaml", "--learning_rate 2e-4"),
)
USER_AUDIO_LOSS_WEIGHT = 0.3  # in stage 1: so small a model learns to listen much faster when it predicts speech too


@dataclass(frozen=True)
class Form:
    """How much of everything; `minutes` per step are those of two cores, for the outlook only."""

    folder: str
    corpus_size: str  # of tools/make_demo_corpus.py
    steps: tuple[int, int, int, int]  # of the four stages
    batch_size: int  # packs of `seq_length` tokens
    seq_length: int
    num_asr: int  # held-out items in each of four modes
    num_tts: int
    num_qa: int
    num_roundtrip: int
    minutes: Mapping[str, float]
    note: str = ""  # for the report


FORMS = {
    "quick": Form(
        folder="outputs/quickstart",
        corpus_size="quick",
        steps=(1500, 150, 200, 150),
        batch_size=3,
        seq_length=512,
        num_asr=60,
        num_tts=30,
        num_qa=60,
        num_roundtrip=40,
        minutes={"corpus": 3, "codes": 1, "stage1": 6, "stage2": 1, "stage3": 3, "stage4": 2, "evaluation": 4},
    ),
    "long": Form(
        folder="outputs/quickstart_long",
        corpus_size="long",
        steps=(20000, 1500, 3000, 2000),
        batch_size=4,
        seq_length=512,
        num_asr=180,
        num_tts=120,
        num_qa=126,
        num_roundtrip=120,
        minutes={"corpus": 30, "codes": 10, "stage1": 110, "stage2": 8, "stage3": 45, "stage4": 35, "evaluation": 12},
    ),
    "ci": Form(
        folder="outputs/quickstart_ci",
        corpus_size="ci",
        steps=(4, 2, 2, 2),
        batch_size=1,
        seq_length=512,
        num_asr=2,
        num_tts=2,
        num_qa=2,
        num_roundtrip=2,
        minutes=dict.fromkeys(("corpus", "codes", "stage1", "stage2", "stage3", "stage4", "evaluation"), 0.3),
        note="A few training steps only: this shows that the path works and says nothing about quality.",
    ),
}


@dataclass(frozen=True)
class Step:
    """One command; `environment` is added to the environment."""

    name: str
    title: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def plan_steps(form: Form, folder: Path, tokenizer_path: str | None, decoder_path: str | None) -> list[Step]:
    """List what is to be done, in order."""
    corpus, codes = folder / "corpus", folder / "codes"
    num_cores = str(os.cpu_count() or 1)
    tokenizer = ["--audio-tokenizer-path", tokenizer_path] if tokenizer_path else []
    decoder = ["--audio-decoder-path", decoder_path] if decoder_path else []
    yamls = [str(corpus / name) for name in dict.fromkeys(stage.data for stage in STAGES)]
    steps = [
        _python(
            "corpus", "make the demo corpus", "tools/make_demo_corpus.py", "--out", corpus, "--size", form.corpus_size
        ),
        _python(
            *("codes", "turn its speech into audio codes", "tools/extract_audio_codes.py"),
            *("--data", *yamls, "--codes", codes, "--processes", num_cores, *tokenizer),
        ),
    ]
    start = TEXT_MODEL
    for number, stage in enumerate(STAGES):
        steps.append(_stage_step(form, folder, stage, form.steps[number], start, tokenizer_path))
        start = folder / stage.name
    counts = {"asr": form.num_asr, "tts": form.num_tts, "qa": form.num_qa, "roundtrip": form.num_roundtrip}
    sizes = [part for name, count in counts.items() for part in (f"--num-{name}", count)]
    results, stages = folder / "evaluation", [folder / stage.name for stage in STAGES]
    note = ["--note", form.note] if form.note else []
    return [
        *steps,
        _python(
            *("evaluation", "evaluate on held-out speech", "-m", "evaluation.demo", "--model", start),
            *("--corpus", corpus, "--codes", codes, "--output", results, *sizes, *tokenizer, *decoder),
        ),
        _python(
            *("report", "write the report", "-m", "evaluation.report", "--evaluation", results),
            *("--stages", *stages, "--output", folder, *note),
        ),
    ]


def _python(name: str, title: str, *arguments: object) -> Step:
    return Step(name, title, ["python", *map(str, arguments)])


def _stage_step(
    form: Form, folder: Path, stage: Stage, num_steps: int, start: Path, tokenizer_path: str | None
) -> Step:
    user_audio = ["--user_audio_loss_weight", str(USER_AUDIO_LOSS_WEIGHT)] if stage is STAGES[0] else []
    flags = {
        "output_dir": folder / stage.name,
        "max_steps": num_steps,
        "per_device_train_batch_size": form.batch_size,
        "gradient_accumulation_steps": 1,
        "logging_steps": max(num_steps // 75, 1),
        "save_steps": 0.25,
    }
    command = ["bash", str((STAGE_SCRIPTS / stage.script).relative_to(ROOT)), str(form.seq_length), "run"]
    command += [*shlex.split(stage.flags), *user_audio]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {
        "MODEL_NAME_OR_PATH": str(start),
        "CONFIG_NAME": f"configs/models/tiny_mtp{stage.num_modules}.json",
        "DATA": str(folder / "corpus" / stage.data),
        "OUTPUT_ROOT": str(folder),
        "AUDIO_CODE_DIR": str(folder / "codes"),
        "AUDIO_TOKENIZER_PATH": tokenizer_path or "embedded",
    }
    return Step(stage.name, f"train {stage.name} ({stage.script})", command, environment)


class Progress:
    """Marks of finished steps, files in a folder, with the minutes that each took."""

    def __init__(self, folder: Path):
        self._folder = folder

    def is_done(self, step: Step) -> bool:
        return self._path(step).exists()

    def mark(self, step: Step, minutes: float) -> None:
        self._folder.mkdir(exist_ok=True)
        self._path(step).write_text(json.dumps({"minutes": minutes}) + "\n", encoding="utf-8")

    def minutes(self, steps: Sequence[Step]) -> float:
        return sum(json.loads(self._path(step).read_text(encoding="utf-8"))["minutes"] for step in steps)

    def _path(self, step: Step) -> Path:
        return self._folder / f"{step.name}.json"


def open_folder(folder: Path, settings: Mapping, fresh: bool) -> None:
    """Make the folder, or check that it was made with the same settings; `fresh` deletes it first.

    Raises: ValueError if the folder is not ours, or its settings differ.
    """
    mark = folder / MARK
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise ValueError(f"{folder} holds other files; choose another folder with --output")
    if fresh and folder.exists():
        shutil.rmtree(folder)
    if mark.exists():
        earlier = json.loads(mark.read_text(encoding="utf-8"))
        if changed := [name for name in settings if settings[name] != earlier.get(name)]:
            raise ValueError(
                f"{folder} was made with other settings ({', '.join(changed)}); start over with --fresh, or choose "
                "another folder with --output"
            )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def run_steps(steps: Sequence[Step], progress: Progress, outlook: Mapping[str, float]) -> None:
    """Run what is not done yet.

    Args:
        outlook: Minutes that a step usually takes.
    Raises: CalledProcessError, KeyboardInterrupt.
    """
    for number, step in enumerate(steps, start=1):
        if progress.is_done(step):
            continue
        left = sum(outlook.get(later.name, 0) for later in steps[number - 1 :] if not progress.is_done(later))
        own = outlook.get(step.name, 0)
        print(f"\n== Step {number} of {len(steps)}: {step.title}; about {own:g} of {left:g} minutes left", flush=True)
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in step.environment.items())
        print(f"$ {settings} {shlex.join(step.command)}".replace("$  ", "$ "), flush=True)
        start = time.monotonic()
        subprocess.run(step.command, check=True, env=os.environ | dict(step.environment), cwd=ROOT)
        progress.mark(step, (time.monotonic() - start) / 60)


def print_result(folder: Path, tokenizer_path: str | None, decoder_path: str | None) -> None:
    """Say what came out and where it lies."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    answer = report["answer"]
    question = answer["question_wav"]
    more = [("--audio-tokenizer-path", tokenizer_path), ("--audio-decoder-path", decoder_path)]
    options = " ".join(f"{name} {value}" for name, value in more if value)
    rows = {
        "question": question,
        "answer": answer["wav"],
        "its text": answer["text"],
        "as heard": f"{answer['transcript']} (transcript of the answer by a speech recogniser)",
        "report": f"{folder / 'report.md'} and {folder / 'report.json'}",
        "pictures": ", ".join(str(path) for path in sorted(folder.glob("*.png"))),
        "model": folder / STAGES[-1].name,
        "ask more": f"python tools/inference_sts.py --model {folder / STAGES[-1].name} --task sts --audio {question} "
        f"--output answer.wav {options}".rstrip(),
    }
    print()
    for name, value in rows.items():
        print(f"{name:>9}: {value}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--long", dest="form", action="store_const", const="long", help="hours, for better figures")
    size.add_argument("--ci", dest="form", action="store_const", const="ci", help="minutes, to see that the path works")
    parser.add_argument("--fresh", action="store_true", help="delete what is there and start over")
    parser.add_argument("--output", type=Path, help="folder (default: outputs/quickstart, _long and _ci appended)")
    parser.set_defaults(form="quick")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    os.chdir(ROOT)
    form = FORMS[options.form]
    folder = options.output or Path(form.folder)
    paths = (os.environ.get("AUDIO_TOKENIZER_PATH") or None, os.environ.get("AUDIO_DECODER_PATH") or None)
    settings = asdict(form) | {"stages": [asdict(stage) for stage in STAGES], "audio_paths": list(paths)}
    try:
        open_folder(folder, json.loads(json.dumps(settings)), options.fresh)
    except ValueError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    steps, progress = plan_steps(form, folder, *paths), Progress(folder / "done")
    was_done = all(map(progress.is_done, steps))
    try:
        run_steps(steps, progress, form.minutes)
    except KeyboardInterrupt:
        print("\nquickstart: stopped; the same command continues", file=sys.stderr)
        return STOPPED_BY_USER
    except subprocess.CalledProcessError as error:
        print("\nquickstart: a step failed, see above; once that is mended the same command continues", file=sys.stderr)
        return error.returncode if error.returncode > 0 else 1
    print_result(folder, *paths)
    minutes = progress.minutes(steps)
    if was_done:
        print(f"\nEverything is done already (it took {minutes:.0f} minutes); --fresh starts over.")
    else:
        print(f"\nDone; the steps took {minutes:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the whole path at small size: demo corpus, audio codes, four training stages, evaluation, report.

    bash scripts/quickstart.sh            # installs what is needed, then runs this program
    bash scripts/quickstart.sh --long     # hours, for better figures
    bash scripts/quickstart.sh --fresh    # start over

Each step is a command of its own, printed before it runs. A finished step leaves a mark, so the same command continues
after an interruption, and says so when everything is done. The folder is outputs/quickstart, or with --long and --ci
outputs/quickstart_long and outputs/quickstart_ci.
"""

import argparse
import hashlib
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
ASSETS = Path("vita_audio/assets")
TEXT_MODEL = ASSETS / "tiny_text_lm"
EMBEDDED = "embedded"  # as a path: the speech tokenizer or decoder in ASSETS
MARK = "quickstart.json"  # in a folder that is ours, with the settings it was made with
STOPPED_BY_USER = 130
LOG_ENTRIES = 75  # of a stage, for its curves


@dataclass(frozen=True)
class Stage:
    """One training stage: a script of `STAGE_SCRIPTS` and what the tiny model needs different from the 7B model."""

    name: str
    script: str
    num_modules: int
    data: str  # mixture of the demo corpus
    flags: str


STAGES = (
    # So small a model learns to listen much faster when it has to predict the user's speech too.
    Stage(
        "stage1",
        "finetune_glm4voice_stage1.sh",
        0,
        "stage1.yaml",
        "--learning_rate 1.2e-3 --user_audio_loss_weight 0.3 --audio_code_noise 0.1",
    ),
    Stage("stage2", "finetune_glm4voice_mtp1_stage1.sh", 1, "mtp.yaml", "--learning_rate 2e-3"),
    Stage("stage3", "finetune_glm4voice_mtp10_stage1.sh", 10, "mtp.yaml", "--learning_rate 2e-3"),
    Stage("stage4", "finetune_glm4voice_mtp10_stage2.sh", 10, "stage4.yaml", "--learning_rate 2e-4"),
)


@dataclass(frozen=True)
class Form:
    """How much of everything; `minutes` per step are those of two cores, for the outlook only."""

    folder: str
    corpus_size: str  # of tools/make_demo_corpus.py
    steps: tuple[int, int, int, int]  # of the four stages
    batch_size: int  # packs of `seq_length` tokens
    seq_length: int
    num_heldout: Mapping[str, int]  # items of each task, in each of four modes; clips for the codec's round trip
    minutes: Mapping[str, float]
    note: str = ""  # for the report


FORMS = {
    "quick": Form(
        folder="outputs/quickstart",
        corpus_size="quick",
        steps=(4000, 1500, 400, 250),
        batch_size=3,
        seq_length=512,
        num_heldout={"asr": 60, "tts": 30, "qa": 60, "roundtrip": 40},
        minutes={"corpus": 4, "codes": 0.5, "stage1": 9, "stage2": 2, "stage3": 3, "stage4": 2.5, "evaluation": 4},
    ),
    "long": Form(
        folder="outputs/quickstart_long",
        corpus_size="long",
        steps=(20000, 1500, 3000, 2000),
        batch_size=4,
        seq_length=512,
        num_heldout={"asr": 180, "tts": 120, "qa": 126, "roundtrip": 120},
        minutes={"corpus": 30, "codes": 10, "stage1": 110, "stage2": 8, "stage3": 45, "stage4": 35, "evaluation": 12},
    ),
    "ci": Form(
        folder="outputs/quickstart_ci",
        corpus_size="ci",
        steps=(4, 2, 2, 2),
        batch_size=1,
        seq_length=512,
        num_heldout={"asr": 2, "tts": 2, "qa": 2, "roundtrip": 2},
        minutes={
            "corpus": 0.3,
            "codes": 0.3,
            "stage1": 1.2,
            "stage2": 0.2,
            "stage3": 0.3,
            "stage4": 0.3,
            "evaluation": 0.3,
        },
        note="A few training steps only: this shows that the path works and says nothing about quality.",
    ),
}


@dataclass(frozen=True)
class Step:
    """One command; it leaves `product` behind, and `environment` is added to the environment."""

    name: str
    title: str
    product: Path
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What is to be done where; paths of None mean the embedded speech tokenizer and decoder."""

    form: Form
    folder: Path
    tokenizer_path: str | None = None
    decoder_path: str | None = None

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def codes(self) -> Path:
        return self.folder / "codes"

    @property
    def model(self) -> Path:
        return self.folder / STAGES[-1].name

    def audio_flags(self, *, decoder: bool = True) -> list[str]:
        """Return the flags that choose another speech tokenizer and decoder."""
        flags = ["--audio-tokenizer-path", self.tokenizer_path] if self.tokenizer_path else []
        return flags + (["--audio-decoder-path", self.decoder_path] if decoder and self.decoder_path else [])


def fingerprints(run: Run) -> dict[str, str]:
    """Return hashes of the weights that everything is made with; where they have no folder here, their name."""
    parts = {"speech_tokenizer": run.tokenizer_path, "speech_decoder": run.decoder_path}
    parts = {name: ASSETS / name if path in (None, EMBEDDED) else path for name, path in parts.items()}
    parts["text_model"] = TEXT_MODEL
    return {name: _hash_folder(ROOT / path) if (ROOT / path).is_dir() else str(path) for name, path in parts.items()}


def _hash_folder(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def seen_from_root(path: str | Path) -> Path:
    """Return a path of the folder we are in as one of the repository's root, where all commands run."""
    path = Path(path).absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def plan_steps(run: Run) -> list[Step]:
    """List what is to be done, in order."""
    starts = [TEXT_MODEL, *(run.folder / stage.name for stage in STAGES)]
    stages = [
        _stage_step(run, stage, num_steps, start)
        for stage, num_steps, start in zip(STAGES, run.form.steps, starts, strict=False)
    ]
    return [_corpus_step(run), _codes_step(run), *stages, _evaluation_step(run), _report_step(run)]


def _corpus_step(run: Run) -> Step:
    command = ["python", "tools/make_demo_corpus.py", "--out", str(run.corpus), "--size", run.form.corpus_size]
    return Step("corpus", "make the demo corpus", run.corpus / STAGES[-1].data, command)


def _codes_step(run: Run) -> Step:
    mixtures = [str(run.corpus / data) for data in dict.fromkeys(stage.data for stage in STAGES)]
    command = ["python", "tools/extract_audio_codes.py", "--data", *mixtures, "--codes", str(run.codes)]
    command += ["--processes", str(os.cpu_count() or 1), *run.audio_flags(decoder=False)]
    return Step("codes", "turn its speech into audio codes", run.codes, command)


def _stage_step(run: Run, stage: Stage, num_steps: int, start: Path) -> Step:
    output = run.folder / stage.name
    script = (STAGE_SCRIPTS / stage.script).relative_to(ROOT)
    flags = {
        "output_dir": output,
        "max_steps": num_steps,
        "per_device_train_batch_size": run.form.batch_size,
        "gradient_accumulation_steps": 1,
        "logging_steps": max(num_steps // LOG_ENTRIES, 1),
        "save_steps": 0.25,
    }
    command = ["bash", str(script), str(run.form.seq_length), "run", *shlex.split(stage.flags)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {
        "MODEL_NAME_OR_PATH": str(start),
        "CONFIG_NAME": f"configs/models/tiny_mtp{stage.num_modules}.json",
        "DATA": str(run.corpus / stage.data),
        "OUTPUT_ROOT": str(run.folder),
        "AUDIO_CODE_DIR": str(run.codes),
        "AUDIO_TOKENIZER_PATH": run.tokenizer_path or EMBEDDED,
    }
    title = f"train {stage.name}" + (", after DeepSpeed has built its extension" if stage is STAGES[0] else "")
    return Step(stage.name, title, output / "train_results.json", command, environment)


def _evaluation_step(run: Run) -> Step:
    output = run.folder / "evaluation"
    paths = {"model": run.model, "corpus": run.corpus, "codes": run.codes, "output": output}
    command = ["python", "-m", "evaluation.demo"]
    command += [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    command += [part for task, count in run.form.num_heldout.items() for part in (f"--num-{task}", str(count))]
    return Step("evaluation", "evaluate on held-out speech", output / "answer.json", command + run.audio_flags())


def _report_step(run: Run) -> Step:
    stages = [str(run.folder / stage.name) for stage in STAGES]
    command = ["python", "-m", "evaluation.report", "--evaluation", str(run.folder / "evaluation")]
    command += ["--stages", *stages, "--output", str(run.folder), *(["--note", run.form.note] if run.form.note else [])]
    return Step("report", "write the report", run.folder / "report.json", command)


class Progress:
    """Marks of finished steps, files in a folder, with the minutes that each took."""

    def __init__(self, folder: Path):
        self._folder = folder

    def is_done(self, step: Step) -> bool:
        return self._path(step).exists() and step.product.exists()

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


def print_result(run: Run, caller: Path) -> None:
    """Say what came out and where it lies, to somebody in the folder `caller`."""
    answer = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))["answer"]
    flags = ["--model", str(run.model), "--task", "sts", "--audio", answer["question_wav"], *run.audio_flags()]
    rows = {
        "question": answer["question_wav"],
        "answer": answer["wav"],
        "its text": answer["text"],
        "as heard": answer["transcript"] or "(nothing)",
        "report": f"{run.folder / 'report.md'} and report.json",
        "pictures": ", ".join(str(path) for path in sorted(run.folder.glob("*.png"))),
        "model": str(run.model),
        "ask more": shlex.join([str(seen_from_root(sys.executable)), "tools/inference_sts.py", *flags]),
    }
    print("" if caller == ROOT else f"\nIn {ROOT}:")
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


def read_path(variable: str) -> str | None:
    """Return a path from the environment; what is no path here may be a name that programs know."""
    value = os.environ.get(variable)
    return str(seen_from_root(value)) if value and Path(value).exists() else value or None


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    form = FORMS[options.form]
    audio_paths = [read_path(name) for name in ("AUDIO_TOKENIZER_PATH", "AUDIO_DECODER_PATH")]
    run = Run(form, seen_from_root(options.output) if options.output else Path(form.folder), *audio_paths)
    caller = Path.cwd()
    os.chdir(ROOT)
    settings = {name: value for name, value in asdict(form).items() if name not in ("minutes", "note")}
    settings |= {"stages": [asdict(stage) for stage in STAGES], **fingerprints(run)}
    try:
        open_folder(run.folder, json.loads(json.dumps(settings)), options.fresh)
    except ValueError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    steps, progress = plan_steps(run), Progress(run.folder / "done")
    was_done = all(map(progress.is_done, steps))
    try:
        run_steps(steps, progress, form.minutes)
    except KeyboardInterrupt:
        print("\nquickstart: stopped; the same command continues", file=sys.stderr)
        return STOPPED_BY_USER
    except subprocess.CalledProcessError as error:
        print("\nquickstart: a step failed, see above; once that is mended the same command continues", file=sys.stderr)
        return error.returncode if error.returncode > 0 else 1
    print_result(run, caller)
    minutes = progress.minutes(steps)
    if was_done:
        print(f"\nEverything is done already (it took {minutes:.1f} minutes); --fresh starts over.")
    else:
        print(f"\nDone; the steps took {minutes:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

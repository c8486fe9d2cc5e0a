"""Run the whole path at small size: demo corpus, audio codes, four training stages, evaluation, report.

    bash scripts/quickstart.sh            # installs what is needed, then runs this program
    bash scripts/quickstart.sh --long     # hours, for better figures
    bash scripts/quickstart.sh --fresh    # start over
    bash scripts/quickstart.sh --variant plus   # a model that hears through a speech encoder, trained here too

Each step is a command of its own, printed before it runs. A finished step leaves a mark, so the same command continues
after an interruption, and says so when everything is done. The folder is outputs/quickstart, or with --long and --ci
outputs/quickstart_long and outputs/quickstart_ci; that of the other variant begins with outputs/quickstart_plus.
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
from dataclasses import asdict
from pathlib import Path

from tools.demo.plan import ASSETS, EMBEDDED, ROOT, TEXT_MODEL, UNDECISIVE, VARIANTS, Run, Step, plan_steps

MARK = "quickstart.json"  # in a folder that is ours, with the settings it was made with
STOPPED_BY_USER = 130


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

    Raises: NotADirectoryError; ValueError if the folder is not ours, or its settings differ.
    """
    mark = folder / MARK
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output must be a folder, got the file {folder}")
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


def run_to_the_end(program: str, steps: Sequence[Step], progress: Progress, outlook: Mapping[str, float]) -> int:
    """Run what is not done yet; return 0, or after a line on stderr the exit code of what stopped or failed."""
    try:
        run_steps(steps, progress, outlook)
    except KeyboardInterrupt:
        print(f"\n{program}: stopped; the same command continues", file=sys.stderr)
        return STOPPED_BY_USER
    except subprocess.CalledProcessError as error:
        print(f"\n{program}: a step failed, see above; once that is mended the same command continues", file=sys.stderr)
        return error.returncode if error.returncode > 0 else 1
    return 0


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
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="glm4voice",
        help="what the model hears: glm4voice, audio codes; plus, what a speech encoder makes (default: %(default)s)",
    )
    parser.add_argument("--fresh", action="store_true", help="delete what is there and start over")
    parser.add_argument(
        "--output", type=Path, help="folder (default: outputs/quickstart, _plus, _long and _ci appended)"
    )
    parser.add_argument("--paths-from", type=Path, default=Path.cwd(), help="folder that relative paths start from")
    parser.set_defaults(form="quick")
    return parser.parse_args(arguments)


def read_path(variable: str) -> str | None:
    """Return a path from the environment; what is no path here may be a name that programs know."""
    value = os.environ.get(variable)
    return str(seen_from_root(value)) if value and Path(value).exists() else value or None


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    os.chdir(options.paths_from)
    variant = VARIANTS[options.variant]
    form = variant.forms[options.form]
    audio_paths = [read_path(name) for name in ("AUDIO_TOKENIZER_PATH", "AUDIO_DECODER_PATH")]
    run = Run(variant, form, seen_from_root(options.output) if options.output else Path(form.folder), *audio_paths)
    caller = Path.cwd()
    os.chdir(ROOT)
    settings = {name: value for name, value in asdict(form).items() if name not in UNDECISIVE}
    settings |= {"stages": [asdict(stage) for stage in variant.stages], **fingerprints(run)}
    try:
        open_folder(run.folder, json.loads(json.dumps(settings)), options.fresh)
    except (ValueError, OSError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    steps, progress = plan_steps(run), Progress(run.folder / "done")
    was_done = all(map(progress.is_done, steps))
    if code := run_to_the_end("quickstart", steps, progress, form.minutes):
        return code
    print_result(run, caller)
    minutes = progress.minutes(steps)
    if was_done:
        print(f"\nEverything is done already (it took {minutes:.1f} minutes); --fresh starts over.")
    else:
        print(f"\nDone; the steps took {minutes:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

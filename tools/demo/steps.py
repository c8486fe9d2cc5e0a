"""Steps of a long run: each is one command, and finished steps are marked, so that an interrupted run can resume."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vita_audio.files.atomic import write_json

ROOT = Path(__file__).resolve().parents[2]
MARK = "quickstart.json"  # identifies a folder as ours and records its settings
STOPPED_BY_USER = 130


@dataclass(frozen=True)
class Step:
    """One command of a run.

    Attributes:
        product: File or folder that exists once the command has succeeded.
        environment: Variables added to the environment of this process.
    """

    name: str
    title: str
    product: Path
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Progress:
    """Marks of finished steps: a file for each, with the minutes that the step took."""

    def __init__(self, folder: Path):
        self._folder = folder

    def is_done(self, step: Step) -> bool:
        return self._path(step).exists() and step.product.exists()

    def mark(self, step: Step, minutes: float) -> None:
        write_json(self._path(step), {"minutes": minutes})

    def minutes(self, steps: Sequence[Step]) -> float:
        return sum(json.loads(self._path(step).read_text(encoding="utf-8"))["minutes"] for step in steps)

    def _path(self, step: Step) -> Path:
        return self._folder / f"{step.name}.json"


def flags_of(values: Mapping[str, object]) -> list[str]:
    """Return `--name value` for each entry, `--name value value ...` for a list or tuple."""
    lists = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in values.items()}
    return [part for name, parts in lists.items() for part in (f"--{name}", *map(str, parts))]


def seen_from_root(path: str | Path) -> Path:
    """Return a path relative to the working directory as one relative to the repository, where all commands run."""
    path = Path(path).absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def read_path(value: str | None) -> str | None:
    """Return an existing path as seen from the repository, and anything else, which may be a known name, unchanged."""
    return str(seen_from_root(value)) if value and Path(value).exists() else value or None


def open_folder(folder: Path, settings: Mapping, fresh: bool, *, mark: str = MARK) -> None:
    """Create the folder, or check that it was made with the same settings; `fresh` deletes it first.

    Args:
        mark: Name of the file that identifies the folder.
    Raises: NotADirectoryError; ValueError if the folder holds other files or was made with other settings.
    """
    mark_file = folder / mark
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output must be a folder, got the file {folder}")
    if folder.exists() and any(folder.iterdir()) and not mark_file.exists():
        raise ValueError(f"{folder} holds other files; choose another folder with --output")
    if fresh and folder.exists():
        shutil.rmtree(folder)
    if mark_file.exists():
        earlier = json.loads(mark_file.read_text(encoding="utf-8"))
        if changed := [name for name in settings if settings[name] != earlier.get(name)]:
            raise ValueError(
                f"{folder} was made with other settings ({', '.join(changed)}); start over with --fresh, or choose "
                "another folder with --output"
            )
    write_json(mark_file, settings)


def run_steps(program: str, steps: Sequence[Step], progress: Progress, usual_minutes: Mapping[str, float]) -> int:
    """Run the steps that are not done yet, and stop at the first that fails.

    Args:
        program: Name for messages.
        usual_minutes: By step name, for messages.
    Returns: 0, or, after a line on stderr, the exit code of the failed step or `STOPPED_BY_USER`.
    """
    for number, step in enumerate(steps, start=1):
        if progress.is_done(step):
            continue
        later = sum(usual_minutes.get(other.name, 0) for other in steps[number:] if not progress.is_done(other))
        own, rest = usual_minutes.get(step.name, 0), f", then {later:g} for the later steps" if later else ""
        print(f"\n== Step {number} of {len(steps)}: {step.title}; about {own:g} minutes{rest}", flush=True)
        settings = [f"{name}={shlex.quote(value)}" for name, value in step.environment.items()]
        print("$", *settings, shlex.join(step.command), flush=True)
        start = time.monotonic()
        try:
            code = subprocess.run(step.command, env=os.environ | dict(step.environment), cwd=ROOT).returncode
        except KeyboardInterrupt:
            print(f"\n{program}: stopped; run the same command again to continue", file=sys.stderr)
            return STOPPED_BY_USER
        if code:
            print(
                f"\n{program}: a step failed, see above; fix it and run the same command to continue", file=sys.stderr
            )
            return max(code, 1)
        progress.mark(step, (time.monotonic() - start) / 60)
    return 0

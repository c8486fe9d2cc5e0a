"""The folder of a training run: whose it is, what to resume from, whether the run is done."""

from __future__ import annotations

import json
import re
import shutil
from enum import Enum
from pathlib import Path

ARGUMENTS_FILE = "run_arguments.json"  # written first: marks a folder as one of ours
RESULTS_FILE = "train_results.json"  # written last: marks a finished run
STATE_FILE = "trainer_state.json"  # the last file of a checkpoint

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class RunState(Enum):
    NEW = "new"
    STARTED = "started"
    FINISHED = "finished"


def inspect_run_folder(folder: str | Path) -> RunState:
    """Say how far the run in a folder is.

    Raises: FileExistsError if the folder holds something else; NotADirectoryError if it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output_dir must be a folder, got the file {folder}")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if not names:
        return RunState.NEW
    if ARGUMENTS_FILE not in names:
        raise FileExistsError(
            f"--output_dir {folder} holds files that are not of a training run ({', '.join(names[:5])}); "
            "choose another folder, or pass --overwrite_output_dir to write into this one"
        )
    return RunState.FINISHED if RESULTS_FILE in names else RunState.STARTED


def last_checkpoint(folder: str | Path, max_steps: int = -1) -> Path | None:
    """Return the newest checkpoint to resume from; one whose writing was cut off does not count.

    Args:
        max_steps: Steps of the run, -1 if unknown. The checkpoint of the last step does not count either, because the
            Trainer would take one step more.
    """
    complete = [(step, path) for step, path in _checkpoints(folder) if _is_complete(path)]
    return next((path for step, path in reversed(complete) if max_steps < 0 or step < max_steps), None)


def clear_run(folder: str | Path) -> None:
    """Delete the checkpoints and marks of an earlier run and leave everything else."""
    for _, checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)
    for name in (ARGUMENTS_FILE, RESULTS_FILE):
        (Path(folder) / name).unlink(missing_ok=True)


def _checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """List the step and folder of all checkpoints, complete or not, by step."""
    return sorted(
        (int(match[1]), path) for path in Path(folder).glob("*/") if (match := _CHECKPOINT.fullmatch(path.name))
    )


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True

"""The folder of a training run: whether the run is finished, where it resumes, and with which arguments it began."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from vita_audio.training.arguments import DataArguments, ModelArguments
from vita_audio.training.checkpoints import list_checkpoints

ARGUMENTS_FILE = "run_arguments.json"  # written first: marks the folder of a run
DATA_FILE = "data_report.json"  # statistics of the packs, and the samples that were left out
RESULTS_FILE = "train_results.json"  # written last: marks a finished run
STATE_FILE = "trainer_state.json"  # the last file of a checkpoint
EVALUATIONS = "evaluation"  # folder of the evaluations of the checkpoints
QUALITY_FILE = "quality.json"  # their summary
NONFINITE_FILE = "nonfinite.jsonl"  # batches whose loss or gradient was not finite

NUM_PROCESSES = "num_processes"  # in the arguments file, next to the arguments

# These and all model and data arguments decide what a run learns; those in _FREE only decide where files are stored and
# how results are computed.
_LEARNING = frozenset(
    ("max_steps", "num_train_epochs", "learning_rate", "mtp_model_lr_mult", "lr_scheduler_type", "lr_scheduler_kwargs")
    + ("warmup_steps", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")
    + ("max_grad_norm", "neftune_noise_alpha", "seed", "data_seed")
)
_BATCH = frozenset(("per_device_train_batch_size", "gradient_accumulation_steps"))
_FREE = frozenset(
    ("audio_code_dir", "pack_cache_dir", "extract_codes", "preprocessing_num_workers", "attn_implementation")
)

RunState = Literal["new", "started", "finished"]


def inspect_run_folder(folder: str | Path) -> RunState:
    """Return the state of the run in a folder.

    Raises: FileExistsError if the folder holds other files; NotADirectoryError if it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output_dir must be a folder, got the file {folder}")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if not names:
        return "new"
    if ARGUMENTS_FILE not in names:
        raise FileExistsError(
            f"--output_dir {folder} holds files that are not from a training run ({', '.join(names[:5])}); "
            "choose another folder, or pass --overwrite_output_dir to write into this one"
        )
    return "finished" if RESULTS_FILE in names else "started"


def check_arguments(folder: str | Path, values: Mapping[str, Any], state: RunState) -> None:
    """Check that a started or finished run had the same arguments, apart from those that do not change what it learns.

    A run that is not finished may get more `max_steps`, and another batch size on another number of processes.

    Args:
        values: Content for `ARGUMENTS_FILE`: arguments by name, and `NUM_PROCESSES`.
    Raises: FileExistsError that names the differences.
    """
    advice = "choose another folder, or pass --overwrite_output_dir true to start again in this one"
    try:
        stored = json.loads((Path(folder) / ARGUMENTS_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileExistsError(f"--output_dir {folder}: {ARGUMENTS_FILE} is damaged ({error}); {advice}") from error
    compared = {item.name for part in (ModelArguments, DataArguments) for item in fields(part)} - _FREE | _LEARNING
    if stored.get(NUM_PROCESSES) == values[NUM_PROCESSES]:
        compared |= _BATCH
    if state == "started" and 0 < stored.get("max_steps", 0) < values["max_steps"]:
        compared -= {"max_steps"}
    differences = [
        f"{name} {stored[name]!r}, now {values[name]!r}"
        for name in sorted(compared & stored.keys() & values.keys())
        if not _same(stored[name], values[name])
    ]
    if differences:
        raise FileExistsError(
            f"--output_dir {folder} holds a {state} run with other arguments ({'; '.join(differences)}); {advice}"
        )


def _same(stored: Any, given: Any) -> bool:
    """Compare values of an argument; strings may be different spellings of a path."""
    if isinstance(stored, str) and isinstance(given, str):
        return Path(stored).resolve() == Path(given).resolve()
    return stored == given


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest complete checkpoint to resume from."""
    return next((path for _, path in reversed(list_checkpoints(folder)) if _is_complete(path)), None)


def clear_run(folder: str | Path) -> None:
    """Delete the checkpoints, evaluations and marker files of an earlier run; other files stay."""
    for path in [*(path for _, path in list_checkpoints(folder)), *Path(folder, EVALUATIONS).glob("step-*")]:
        shutil.rmtree(path)
    for name in (ARGUMENTS_FILE, RESULTS_FILE, QUALITY_FILE, NONFINITE_FILE):
        (Path(folder) / name).unlink(missing_ok=True)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True

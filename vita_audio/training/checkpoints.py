"""Checkpoints of a run that are complete or absent, whenever the run is killed, and the disk space they need.

A checkpoint is written to `.checkpoint-N.partial` and moved to `checkpoint-N` when the files of all processes are
there; one that is deleted is moved away first.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from vita_audio.errors import RunError

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_PARTIAL, _DELETED = ".checkpoint-{}.partial", ".checkpoint-{}.deleted"
_GIB = 2**30
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)  # on a full disk, torch.save raises the last one


def list_checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """List the step and folder of all checkpoints of a run, sorted by step."""
    return sorted(
        (int(match[1]), path) for path in Path(folder).glob("*/") if (match := _CHECKPOINT.fullmatch(path.name))
    )


def unfinished_folder(folder: str | Path, step: int) -> Path:
    """Return the folder in which the Trainer writes `checkpoint-N`."""
    return Path(folder) / _PARTIAL.format(step)


def publish(folder: Path, step: int, limit: int | None) -> None:
    """Move a complete checkpoint into place and delete the oldest ones.

    Args:
        folder: Folder of the run.
        limit: Number of checkpoints to keep; None keeps all.
    """
    partial, target = unfinished_folder(folder, step), folder / f"checkpoint-{step}"
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a machine that fails after the move must find the content too
    if target.exists():  # from before a resumption
        delete_checkpoint(target)
    os.rename(partial / target.name, target)
    partial.rmdir()
    if limit is not None and limit > 0:
        for _, path in list_checkpoints(folder)[:-limit]:
            delete_checkpoint(path)


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint; an interruption leaves no part of it under its name."""
    deleted = path.with_name(_DELETED.format(path.name.removeprefix("checkpoint-")))
    path.rename(deleted)
    shutil.rmtree(deleted)


def delete_leftovers(folder: Path) -> None:
    """Delete what interrupted writes and deletions have left in the folder of a run."""
    for pattern in (_PARTIAL, _DELETED):
        for path in folder.glob(pattern.format("*")):
            shutil.rmtree(path)


def write_error(folder: Path, step: int, error: Exception) -> RunError:
    """Return the error for a checkpoint that could not be written, and delete its files to free their space."""
    shutil.rmtree(unfinished_folder(folder, step), ignore_errors=True)
    last = list_checkpoints(folder)
    kept = f"{last[-1][1].name} is the last one" if last else "there is none yet"
    return RunError(
        f"checkpoint-{step} could not be written ({_one_line(error)}), {kept}; {folder} has "
        f"{free_bytes(folder) / _GIB:.2f} GiB free: make room, then run the same command to continue"
    )


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def checkpoint_bytes(model: nn.Module, *, deepspeed: bool, has_adapter: bool = False) -> tuple[int, int]:
    """Estimate the bytes of the weights, and of a checkpoint with the state of AdamW for the trained ones.

    Args:
        model: Its parameters may be partitioned by ZeRO-3.
        deepspeed: Checkpoints of DeepSpeed hold the weights twice, and a float32 copy of the trained ones.
        has_adapter: Only what trains is saved.
    """
    weights = state = 0
    for parameter in model.parameters():
        if has_adapter and not parameter.requires_grad:
            continue
        count = getattr(parameter, "ds_numel", parameter.numel())
        weights += count * parameter.element_size()
        if parameter.requires_grad:
            state += count * (12 if deepspeed else 2 * parameter.element_size())
    return weights, weights * (2 if deepspeed else 1) + state


def check_space(folder: Path, weights: int, checkpoint: int, num_checkpoints: int) -> None:
    """Check that a run has room for its checkpoints and its result before it starts.

    Args:
        folder: Folder of the run; checkpoints in it will be replaced.
        weights: Bytes of the result.
        checkpoint: Bytes of a checkpoint.
        num_checkpoints: Most checkpoints that are there at a time.
    Raises: RunError with the space that is needed and available.
    """
    needed = weights + checkpoint * max(num_checkpoints - len(list_checkpoints(folder)), min(num_checkpoints, 1))
    available = free_bytes(folder)
    if needed > available:
        raise RunError(
            f"--output_dir {folder} needs about {needed / _GIB:.2f} GiB for {num_checkpoints} checkpoints of "
            f"{checkpoint / _GIB:.2f} GiB and the model, and has {available / _GIB:.2f} GiB free; make room, choose "
            "another disk, or keep fewer checkpoints with --save_total_limit"
        )

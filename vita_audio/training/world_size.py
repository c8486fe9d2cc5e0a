"""Resume a run on another number of processes; under DeepSpeed through its universal checkpoints.

ZeRO stores the optimizer state in as many parts as there are processes. The universal form of a checkpoint has one file
for each parameter instead, which every number of processes can read.
"""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from vita_audio.files.atomic import write_text

_LATEST, _LATEST_UNIVERSAL = "latest", "latest_universal"  # files with the name of the folder to load
_OPTIONS = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}

logger = logging.getLogger(__name__)


def needs_universal(checkpoint: Path, num_processes: int, *, zero3: bool | None) -> bool:
    """Return whether a run can resume from a checkpoint only after `make_universal`.

    Args:
        zero3: Whether the run uses ZeRO-3; None without DeepSpeed.
    Raises: ValueError if it cannot resume from it.
    """
    deepspeed = zero3 is not None
    if (checkpoint / _LATEST).exists() != deepspeed:
        written, remedy = ("without", "leave out") if deepspeed else ("with", "give")
        raise ValueError(f"{checkpoint} was written {written} DeepSpeed, {remedy} --deepspeed to resume from it")
    if not deepspeed:
        return False
    parts = _named_in(checkpoint / _LATEST)
    if any(parts.glob("*zero_pp_rank_*_model_states.pt")) != zero3:
        written, remedy = ("without", "another") if zero3 else ("with", "a ZeRO-3")
        raise ValueError(f"{checkpoint} was written {written} ZeRO-3, give {remedy} configuration to resume from it")
    return len(list(parts.glob("*zero_pp_rank_*_optim_states.pt"))) != num_processes


def _named_in(file: Path) -> Path:
    """Return the folder next to a file that holds its name."""
    return file.with_name(file.read_text(encoding="utf-8").strip())


def make_universal(checkpoint: Path) -> None:
    """Add the universal form to a checkpoint that lacks it; one process does this."""
    if (checkpoint / _LATEST_UNIVERSAL).exists():
        return
    from deepspeed.checkpoint.ds_to_universal import main

    parts = _named_in(checkpoint / _LATEST)
    partial, target = (parts.with_name(f"{parts.name}_universal{suffix}") for suffix in (".partial", ""))
    for path in (partial, target):
        shutil.rmtree(path, ignore_errors=True)
    logger.info("converting %s for another number of processes", checkpoint)
    main(Namespace(input_folder=str(parts), output_folder=str(partial), inject_missing_state=True, **_OPTIONS))
    partial.rename(target)
    write_text(checkpoint / _LATEST_UNIVERSAL, target.name)


def load_universal(deepspeed_config: dict[str, Any]) -> None:
    """Change a DeepSpeed configuration such that it loads the universal form of checkpoints."""
    deepspeed_config["checkpoint"] = {**deepspeed_config.get("checkpoint", {}), "load_universal": True}


def restore_zero3_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Correct an optimizer that DeepSpeed's ZeRO-3 has loaded from the universal form of a checkpoint.

    DeepSpeed 0.19.8 gives all groups the settings of the first one, and all states the same step tensor, which each of
    them then advances.

    Args:
        optimizer: The one that ZeRO-3 wraps.
    """
    path = _named_in(checkpoint / _LATEST_UNIVERSAL) / "zero" / "optimizer_state.pt"
    saved = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["param_groups"]
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        group.update(values | {"params": group["params"]})
    for state in optimizer.state.values():
        state["step"] = deepcopy(state["step"])

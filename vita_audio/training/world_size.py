"""Resume a run on another number of processes; under DeepSpeed through its universal checkpoints.

ZeRO stores the optimizer state in as many parts as there are processes. The universal form of a checkpoint has one file
for each parameter instead, which every number of processes can read. For ZeRO-3 it lacks the optimizer's step (as of
DeepSpeed 0.19.8), so Adam would correct its averages as in a new run.
"""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from vita_audio.files.atomic import write_text

_LATEST, _LATEST_UNIVERSAL = "latest", "latest_universal"  # files with the name of the folder to load
_OPTIONS = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}

logger = logging.getLogger(__name__)


def needs_universal(checkpoint: Path, num_processes: int, *, deepspeed: bool) -> bool:
    """Return whether a run can resume from a checkpoint only after `make_universal`.

    Raises: ValueError if it cannot resume from it.
    """
    if (checkpoint / _LATEST).exists() != deepspeed:
        written, remedy = ("without", "leave out") if deepspeed else ("with", "give")
        raise ValueError(f"{checkpoint} was written {written} DeepSpeed, {remedy} --deepspeed to resume from it")
    if not deepspeed:
        return False
    parts = _parts(checkpoint)
    num_saved = len(list(parts.glob("*zero_pp_rank_*_optim_states.pt")))
    if num_saved != num_processes and list(parts.glob("*zero_pp_rank_*_model_states.pt")):
        raise ValueError(
            f"{checkpoint} was written by {num_saved} processes with ZeRO-3, and {num_processes} cannot resume from "
            f"it; start {num_saved}, or a new run in another --output_dir with --model_name_or_path {checkpoint}"
        )
    return num_saved != num_processes


def _parts(checkpoint: Path) -> Path:
    return checkpoint / (checkpoint / _LATEST).read_text(encoding="utf-8").strip()


def make_universal(checkpoint: Path) -> None:
    """Add the universal form to a checkpoint that lacks it; one process does this."""
    if (checkpoint / _LATEST_UNIVERSAL).exists():
        return
    from deepspeed.checkpoint.ds_to_universal import main

    parts = _parts(checkpoint)
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

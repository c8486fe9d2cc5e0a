"""Resume a DeepSpeed run on another number of processes, through DeepSpeed's universal checkpoints.

ZeRO stores the optimizer state in as many parts as there are processes. The universal form of a checkpoint has one file
for each parameter instead, and every number of processes can read it.
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


def saved_processes(checkpoint: Path) -> int:
    """Return the number of processes that wrote the optimizer state of a DeepSpeed checkpoint."""
    return len(list(_parts(checkpoint).glob("*zero_pp_rank_*_optim_states.pt")))


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

"""The processes of an evaluation: which one this is, and that no two of them do the same work."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from vita_audio.inference.pipeline import resolve_device

LONGEST_WAIT = timedelta(days=7)  # of one process for the others
SECONDS_FOR_THE_LAST_ONE = 10.0  # to end, if it is being killed
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Processes:
    """This process among those of torchrun, or alone."""

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
            torch.distributed.barrier()

    def device(self, wanted: str) -> str:
        if wanted == "auto" and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        return resolve_device(wanted)

    def claim(self, folder: Path) -> None:
        """Keep this process's part of a folder to itself until it ends.

        Raises: ValueError if another process works on that part.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / f".process-{self.rank}.lock")
        try:
            self._lock.acquire(timeout=SECONDS_FOR_THE_LAST_ONE)
        except Timeout as error:
            raise ValueError(
                f"another evaluation works in {folder}; wait until it is done or end it, or choose another --output"
            ) from error


@contextmanager
def claim_part(folder: Path, part: str, *, wait: bool) -> Iterator[bool]:
    """Keep a part of the work in `folder` to this process for a while.

    Args:
        wait: Until another process that has it is done with it; False: yield False instead.
    """
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / part)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it ends.

    torchrun ends its processes unless it is killed itself, without a chance to do so. They would go on, beside those of
    the command that is to continue what they do.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

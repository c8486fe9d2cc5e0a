"""Training runs in processes of their own that can be killed; they start fast because a server imports the program."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tools.finetune_sts", "vita_audio.training.stage", "deepspeed"])
RUN_TIMEOUT_SECONDS = 900  # only ends runs that hang: a run takes under a minute on an idle machine


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def train_as(rank: int, num_processes: int, port: int, flags: Sequence[str], log: Path) -> None:
    """Be one process of a run, as if torchrun had started it; stdout and stderr go to `log`."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, num_processes, num_processes, "localhost", port)
    os.environ |= {name: str(value) for name, value in zip(names, values, strict=True)}
    from tools.finetune_sts import main

    main(list(flags))


def run(
    flags: Sequence[str], num_processes: int, log: Path, *, kill_when: Callable[[], bool] | None = None
) -> list[int]:
    """Train to the end, or until `kill_when` returns true, which kills all processes; return their exit codes."""
    port = free_port()
    arguments = [(rank, num_processes, port, flags, log) for rank in range(num_processes)]
    processes = [CONTEXT.Process(target=train_as, args=each) for each in arguments]
    for process in processes:
        process.start()
    deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
    while any(process.is_alive() for process in processes):
        is_late = time.monotonic() > deadline
        if is_late or any(process.exitcode for process in processes) or (kill_when is not None and kill_when()):
            for process in processes:
                process.kill()
        time.sleep(0.0005 if kill_when else 0.05)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]

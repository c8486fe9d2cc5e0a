"""Worker processes that end with their parent, and workers that run the code of another checkout of this project."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vita_audio.command_line import checked
from vita_audio.errors import WRONG_INPUT

ROOT = Path(__file__).parents[1]
THIS = "this checkout"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Started with -c, Python imports the vita_audio of the current folder.
RUN_WORKER = "import runpy, sys; runpy.run_path(sys.argv[1])['main'](sys.argv[2])"


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends.

    A torchrun that is killed cannot stop its workers, which would compete with those of the command that resumes.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_worker(worker: Path, settings: Mapping[str, Any], checkout: Path) -> dict[str, Any]:
    """Run a worker with the code of a checkout, with one thread, and return what it measures.

    The worker ends with this process, also if this process is killed.

    Args:
        worker: Python file with a `main` that takes settings as JSON and prints its result as JSON in the last line. It
            may only use names that the checkout has.
    Raises: SystemExit if the worker fails.
    """
    command = [sys.executable, "-c", RUN_WORKER, str(worker), json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"cwd": checkout, "env": environment, "preexec_fn": end_with_parent}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
    if result.returncode == WRONG_INPUT:
        raise SystemExit(WRONG_INPUT)  # the worker has written the reason
    if result.returncode:
        raise SystemExit(f"{worker.stem} failed in {checkout}, see above")
    return json.loads(result.stdout.splitlines()[-1])


def run_module(module: str, settings: Mapping[str, Any]) -> None:
    """Run the `main` of a module of this checkout in a process of its own, which ends with this one.

    The process can import the packages of this checkout that are not installed, such as `tools` and `evaluation`.

    Args:
        module: Such as `tools.corpora.preparation`; its `main` takes settings as JSON.
        settings: Values for JSON; paths become text.
    Raises: SystemExit with the code of the process if it fails.
    """
    # With -m, Python imports from the folder in which it starts, also after a change of folder.
    command = [sys.executable, "-m", "vita_audio.workers", module, json.dumps(settings, default=str), os.getcwd()]
    code = subprocess.run(command, cwd=ROOT, check=False, preexec_fn=end_with_parent).returncode
    if code:
        raise SystemExit(code)


@checked
def checkout_folder(text: str) -> Path:
    """Argument type: a folder with this project's package."""
    folder = Path(text).resolve()
    if not (folder / "vita_audio").is_dir():
        raise ValueError(f"must be a checkout with a folder vita_audio, got {text}")
    return folder


if __name__ == "__main__":  # started by `run_module`
    name, text, folder = sys.argv[1:]
    module = importlib.import_module(name)
    os.chdir(folder)
    module.main(text)

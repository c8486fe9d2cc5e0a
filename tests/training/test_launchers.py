"""Several launchers as several machines, and processes that die, through the stage scripts and torchrun."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import free_port
from toy_run import logged, run_stage, stage_command

SCRIPT = "finetune_glm4voice_stage1.sh"
FLAGS = "--save_strategy no --logging_steps 1 --gradient_accumulation_steps 2 --bf16 false --extract_codes true"


def start(toy_run, name, steps, **variables):
    command, settings = stage_command(SCRIPT, toy_run, 128, name, *FLAGS.split(), "--max_steps", steps, **variables)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)


def start_two(toy_run, name, steps):
    """Start two launchers, each with one process, as if they were two machines."""
    variables = {"NNODES": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "NPROC_PER_NODE": 1}
    variables["DEEPSPEED_CONFIG"] = "none"
    return [start(toy_run, name, steps, NODE_RANK=rank, **variables) for rank in range(2)]


@pytest.mark.slow
def test_two_launchers_train_like_one_with_two_processes(toy_run):
    for process in start_two(toy_run, "two", 3):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]
    flags = [*FLAGS.split(), "--max_steps", 3]
    result = run_stage(SCRIPT, toy_run, 128, "one", *flags, NPROC_PER_NODE=2, DEEPSPEED_CONFIG="none")
    assert result.returncode == 0, result.stderr[-4000:]
    root = toy_run.folder / "outputs" / SCRIPT.removesuffix(".sh")
    assert logged(root / "two") == logged(root / "one") and len(logged(root / "one")) == 3


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_within_a_minute(toy_run):
    launchers = start_two(toy_run, "dying", 100_000)
    for line in launchers[0].stdout:
        if "grad_norm" in line:
            break
    (worker,) = Path(f"/proc/{launchers[1].pid}/task/{launchers[1].pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    killed = time.monotonic()
    outputs = [launcher.communicate(timeout=60)[0] for launcher in launchers]
    assert time.monotonic() - killed < 60 and all(launcher.returncode for launcher in launchers)
    assert "finetune_sts.py: another process of this run has ended, see its message" in outputs[0]
    assert "Connection" not in re.sub(r"(?m)^\[W.*$", "", outputs[0])  # no traceback that hides the reason
    assert "Signal 9 (SIGKILL) received" in outputs[1]

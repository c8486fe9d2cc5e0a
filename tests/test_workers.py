"""Workers of benchmarks end with the program that started them, however it ends."""

import os
import signal
import subprocess
import sys
from time import monotonic, sleep

from vita_audio.workers import ROOT

START = "from vita_audio.workers import *; run_worker(Path(sys.argv[1]), {}, ROOT)"
WORKER = """
import os, time

def main(settings):
    print(os.getpid(), file=open(__file__ + ".pid", "w"), flush=True)
    time.sleep(60)
"""


def exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    end = monotonic() + 30
    while not condition():
        assert monotonic() < end
        sleep(0.02)


def test_a_worker_ends_with_a_program_that_is_killed(tmp_path):
    worker, pid_file = tmp_path / "worker.py", tmp_path / "worker.py.pid"
    worker.write_text(WORKER)
    program = subprocess.Popen([sys.executable, "-c", START, str(worker)], cwd=ROOT)
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    assert exists(pid)
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    wait_until(lambda: not exists(pid))

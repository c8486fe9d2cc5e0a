"""A vLLM server in a process of its own.

Its environment is the one that third_party/vllm_plugin/setup_env.sh makes; ENGINE_VENV names another folder.
"""

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

PYTHON = Path(os.environ.get("ENGINE_VENV", Path(__file__).parents[1] / ".venv_vllm")) / "bin" / "python"
needs_vllm = pytest.mark.skipif(not PYTHON.exists(), reason=f"needs vLLM, as in {PYTHON}")


@contextmanager
def run_vllm(model, folder, *options):
    """Serve a model in float32 and yield the address; the log is written to `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        PYTHON,
        "-m",
        "vita_audio_vllm",
        model,
        "--port",
        port,
        "--dtype",
        "float32",
        "--enforce-eager",
        *options,
    ]
    log, url = folder / "vllm.log", f"http://127.0.0.1:{port}"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as file:
        server = subprocess.Popen(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        while not is_up(url):
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_up(url):
    try:
        return urlopen(f"{url}/health", timeout=10).status == 200
    except OSError:
        return False

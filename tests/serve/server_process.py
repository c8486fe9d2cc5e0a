"""`python -m vita_audio.serve` in a process of its own, as users start it."""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
from openai import OpenAI

ROOT = Path(__file__).parents[2]


def start(toy_folders, *options, model=None, **pipes):
    """Start it with a tiny model, or one with the embedded codec.

    Its output and errors are read through pipes, unless others are given.
    """
    folders = ["--audio-tokenizer-path", toy_folders.audio_tokenizer, "--audio-decoder-path", toy_folders.audio_decoder]
    folders = ["--model", model] if model else ["--model", toy_folders.model, *folders]
    command = [sys.executable, "-m", "vita_audio.serve", *folders, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, **pipes)


@dataclass
class ServerProcess:
    """A running server that logs into a file.

    Attributes:
        name: Name of its model.
    """

    process: subprocess.Popen
    port: int
    log: Path
    name: str = "model"

    @classmethod
    def start(cls, toy_folders, *options, model=None, port=0):
        log = Path(tempfile.mkstemp(suffix=".jsonl")[1])
        with log.open("w") as errors:
            process = start(toy_folders, "--port", port, "--log-json", *options, model=model, stderr=errors)
        line = process.stdout.readline()
        assert line, log.read_text()
        return cls(process, int(re.search(r"http://localhost:(\d+)", line)[1]), log, (model or toy_folders.model).name)

    def end(self):
        """Kill it at once."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def url(self):
        return f"http://localhost:{self.port}"

    @property
    def socket_url(self):
        return f"ws://localhost:{self.port}/v1/realtime"

    @property
    def client(self):
        return OpenAI(api_key="none", base_url=f"{self.url}/v1", max_retries=0)

    def metric(self, name):
        """Return a metric, 0 if nothing was counted yet."""
        lines = [line.rsplit(" ", 1) for line in httpx.get(f"{self.url}/metrics").text.splitlines()]
        return next((float(value) for key, value in lines if key == f"vita_audio_{name}"), 0.0)

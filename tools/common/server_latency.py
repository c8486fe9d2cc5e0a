"""Talk to a running server as a page does, and measure when the answer is heard: a worker of tools/benchmark_sts.py."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from tqdm import tqdm

from vita_audio.data.audio import load_audio
from vita_audio.errors import one_line_errors
from vita_audio.optional import require
from vita_audio.resample import resample

RATE = 16_000  # Hz, of the sound that is sent; the page's
SERVER_RATE = 24_000  # Hz, of its sound
PIECE_SECONDS = 0.02
QUESTION = "what day comes after monday"  # spoken by the server itself where there are no recordings
QUIET = 0.01  # part of the loudest piece (-40 dB) below which the end of a recording is no speech
PARTS = ("detection_ms", "encoder_ms", "model_ms", "decoder_ms", "rest_ms")  # their sum less EARLY is `total_ms`
EARLY = "early_ms"  # what encoder, model and decoder did while turn detection still waited


@dataclass
class Server:
    """A server of `vita_audio.serve`.

    Attributes:
        url: Address, such as http://localhost:8000.
        token: None if it needs none.
    """

    url: str
    token: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Return the response of an HTTP request; with a body it is a POST.

        Raises: ValueError with the server's message; OSError without a connection.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers)) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise ValueError(f"{self.url}{path}: {error.code} {error.read().decode(errors='replace')}") from error

    def speak(self, model: str, text: str) -> np.ndarray:
        """Return a text in the server's voice, (samples,) float32 at RATE."""
        body = {"model": model, "input": text, "voice": "default", "response_format": "pcm"}
        wave = np.frombuffer(self.request("/v1/audio/speech", body), "<i2").astype(np.float32) / 32768
        return resample(torch.from_numpy(wave), SERVER_RATE, RATE).numpy()


class Microphone:
    """Sends sound in real time: silence, and recordings when they are given to `say`."""

    def __init__(self, socket: Any):
        self._socket, self._waiting = socket, np.zeros(0, dtype=np.float32)
        self._start, self._num_sent = perf_counter(), 0

    def say(self, wave: np.ndarray) -> float:
        """Let a recording follow; return the time of `perf_counter` when its speech ends."""
        first = self._num_sent + len(self._waiting)
        self._waiting = np.concatenate([self._waiting, wave])
        return self._start + (first + speech_length(wave)) / RATE

    async def run(self) -> None:
        """Send until cancelled."""
        size = int(PIECE_SECONDS * RATE)
        while True:
            await asyncio.sleep(self._start + (self._num_sent + size) / RATE - perf_counter())
            piece, self._waiting = self._waiting[:size], self._waiting[size:]
            piece = np.pad(piece, (0, size - len(piece)))
            audio = base64.b64encode((32767 * piece).astype("<i2").tobytes()).decode()
            await self._socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            self._num_sent += size


def speech_length(wave: np.ndarray) -> int:
    """Return how many samples of a recording precede the quiet at its end."""
    size = int(PIECE_SECONDS * RATE)
    pieces = np.pad(wave, (0, -len(wave) % size)).reshape(-1, size)
    levels = np.sqrt((pieces**2).mean(axis=1))
    return size * (1 + int(np.flatnonzero(levels > QUIET * levels.max())[-1]))


@asynccontextmanager
async def connect(server: Server, model: str) -> AsyncIterator[Any]:
    """Open a realtime session with turn detection."""
    client = require("websockets.asyncio.client", purpose="--server", install="'vita-audio[serve]'")
    parts = urlsplit(server.url)
    url = parts._replace(scheme="wss" if parts.scheme == "https" else "ws", path="/v1/realtime").geturl()
    async with client.connect(url, additional_headers=server.headers, max_size=None) as socket:
        audio = {"input": {"format": {"type": "audio/pcm", "rate": RATE}}}
        await socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "audio": audio}}))
        async for text in socket:
            event = json.loads(text)
            check_event(event)
            if event["type"] == "session.updated":
                yield socket
                return


def check_event(event: Mapping[str, Any]) -> None:
    """Raise ValueError for an error of the server."""
    failed = event["type"] == "response.done" and event["response"]["status"] == "failed"
    error = event["response"]["status_details"]["error"] if failed else event.get("error")
    if error:
        raise ValueError(f"the server reports: {error['message']}")


async def ask(socket: Any, microphone: Microphone, wave: np.ndarray) -> dict[str, float] | None:
    """Ask a question aloud and wait for the end of the answer; return its metrics, or None without sound."""
    speech_end, times, first_at = microphone.say(wave), {}, None
    async for text in socket:
        event, now = json.loads(text), perf_counter()
        check_event(event)
        times[event["type"]] = now  # the latest of each type
        if event["type"] == "response.created":
            first_at = None
        elif event["type"] == "response.output_audio.delta":
            first_at = now if first_at is None else first_at
        elif event["type"] == "response.done" and event["response"]["status"] != "cancelled":
            break  # a cancelled one answered a pause in the question
    if first_at is None:
        return None
    metadata = event["response"]["metadata"]
    told = {name: float(metadata[name]) for name in ("encoder_ms", "model_ms", "decoder_ms")}
    metrics = {"total_ms": 1000 * (first_at - speech_end), **told, EARLY: float(metadata.get(EARLY, 0))}
    metrics["detection_ms"] = 1000 * (times["input_audio_buffer.speech_stopped"] - speech_end)
    metrics["rest_ms"] = metrics["total_ms"] - metrics["detection_ms"] - sum(told.values()) + metrics[EARLY]
    metrics["real_time_factor"] = float(metadata["real_time_factor"])
    return metrics


async def converse(server: Server, model: str, waves: Sequence[np.ndarray], num_turns: int) -> list[Any]:
    """Ask the recordings in turn, in one conversation; return what `ask` returns for each."""
    async with connect(server, model) as socket:
        microphone = Microphone(socket)
        sending = asyncio.create_task(microphone.run())
        try:
            turns = tqdm(range(num_turns), desc="talking", unit="turn")
            return [await ask(socket, microphone, waves[turn % len(waves)]) for turn in turns]
        finally:
            sending.cancel()


def measure_server(server: Server, recordings: Sequence[Path], num_turns: int) -> dict[str, Any]:
    """Measure a server; return the content of benchmark.json.

    Raises: ValueError for errors of the server, or if no answer has sound; OSError without a connection.
    """
    model = json.loads(server.request("/v1/models"))["data"][0]["id"]
    waves = [load_audio(path, RATE).numpy() for path in recordings] or [server.speak(model, QUESTION)]
    exceptions = require("websockets.exceptions", purpose="--server", install="'vita-audio[serve]'")
    try:
        turns = asyncio.run(converse(server, model, waves, num_turns))
    except exceptions.WebSocketException as error:
        raise ValueError(f"{server.url} ended the session: {error}") from error
    spoken = [turn for turn in turns if turn is not None]
    if not spoken:
        raise ValueError(f"none of the {num_turns} answers of {server.url} has sound; ask other questions")
    values = {name: [turn[name] for turn in spoken] for name in ("total_ms", *PARTS, EARLY, "real_time_factor")}
    metrics = {name: {"median": median(found), "p90": percentile_90(found)} for name, found in values.items()}
    facts = {"server": server.url, "model": model, "num_turns": num_turns, "num_without_sound": num_turns - len(spoken)}
    return {**facts, "recordings": [path.name for path in recordings], "metrics": metrics, "turns": turns}


def percentile_90(values: Sequence[float]) -> float:
    return quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]


def main(settings: str) -> None:
    """Measure with settings given as JSON and print the result as JSON, the last line of the output.

    Args:
        settings: `server`, the address; `token_file`, which may be null; `recordings`; `turns`.
    """
    given = json.loads(settings)
    with one_line_errors("benchmark_sts"):
        token = Path(given["token_file"]).read_text(encoding="utf-8").strip() if given["token_file"] else None
        recordings = [Path(path) for path in given["recordings"]]
        print(json.dumps(measure_server(Server(given["server"], token), recordings, given["turns"])))

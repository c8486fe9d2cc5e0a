"""Simulated clients of a server for minutes: most talk, some interrupt, leave in mid-answer, or send garbage."""

import asyncio
import io
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx2 as httpx
import numpy as np
import psutil
import soundfile
from realtime_client import pcm, silence, speech
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

RATE = 16_000
STUCK_SECONDS = 180  # no event for this time, while one is due
NAMED = {"server_busy", "too_many_sessions", "rate_limit_exceeded", "conversation_already_has_active_response"}
CONFIG = {
    "type": "realtime",
    "audio": {"input": {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": {}}},
}
GARBAGE = {  # text -> code of the error
    "{": "invalid_event",
    "[]": "invalid_event",
    json.dumps({"type": "conversation.item.retrieve"}): "unknown_event",
    json.dumps({"type": "input_audio_buffer.append", "audio": "&"}): "invalid_value",
    json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}): "invalid_value",
    json.dumps({"type": "session.update", "session": {"voice": "x"}}): "unknown_parameter",
    '{"type": "session.update", "session": {"generation": {"temperature": NaN}}}': "invalid_value",
    json.dumps(
        {"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 8000}}}}}
    ): "invalid_value",
    json.dumps(
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 1}
    ): "item_not_found",
}


class Stuck(AssertionError):
    """An event that is due does not come."""


@dataclass
class Soak:
    """What happened.

    Attributes:
        counts: How often each thing happened.
        faults: What must not happen.
        samples: (seconds, MiB of memory, sessions, streams, waiting answers, threads, open files), about each second.
    """

    server: object
    end: float
    counts: Counter = field(default_factory=Counter)
    faults: list = field(default_factory=list)
    samples: list = field(default_factory=list)

    def check_code(self, code, expected=()):
        """Count an error; one that nobody expects is a fault."""
        self.counts[f"error {code}"] += 1
        if code not in NAMED and code not in expected:
            self.faults.append(f"unexpected error {code}")


class Client:
    """One client, which talks again and again until the end."""

    def __init__(self, soak, number):
        self.soak, self.random = soak, random.Random(number)

    async def run(self):
        acts = {self.talk: 6, self.interrupt: 2, self.leave: 3, self.send_garbage: 2, self.break_off: 1, self.upload: 2}
        while time.monotonic() < self.soak.end:
            (act,) = self.random.choices(list(acts), acts.values())
            self.soak.counts[act.__name__] += 1
            try:
                await act()
            except ConnectionClosed as error:
                self.soak.counts["closed"] += 1
                if error.rcvd is None:
                    self.soak.faults.append(f"{act.__name__}: the connection broke")
            except Exception as error:
                self.soak.faults.append(f"{act.__name__}: {type(error).__name__}: {error}")
            await asyncio.sleep(self.random.random())

    def session(self):
        return connect(self.soak.server.socket_url, ping_timeout=None, max_size=None)

    async def read(self, socket, *kinds):
        """Return the next event of one of these types; errors of the session are counted."""
        while True:
            try:
                event = json.loads(await asyncio.wait_for(socket.recv(), STUCK_SECONDS))
            except asyncio.TimeoutError as error:
                raise Stuck(f"no {' or '.join(kinds)}") from error
            if event["type"] in kinds:
                return event
            if event["type"] == "error":
                self.soak.check_code(event["error"]["code"])

    async def begin(self, socket):
        """Configure a session; return whether it is served."""
        if (await self.read(socket, "session.created", "error"))["type"] == "error":
            self.soak.check_code("too_many_sessions")
            return False
        await socket.send(json.dumps({"type": "session.update", "session": CONFIG}))
        await self.read(socket, "session.updated")
        return True

    async def say(self, socket, seconds):
        """Send speech and the silence after it in real time."""
        wave = np.concatenate([silence(0.2, RATE), speech(seconds, RATE), silence(0.6, RATE)])
        for start in range(0, len(wave), RATE // 10):
            piece = wave[start : start + RATE // 10]
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": pcm(piece)}))
            await asyncio.sleep(len(piece) / RATE)

    async def talk(self):
        async with self.session() as socket:
            for _ in range(self.random.randint(1, 3) * await self.begin(socket)):
                await self.say(socket, self.random.uniform(0.8, 2))
                await self.answer(socket)

    async def answer(self, socket):
        response = (await self.read(socket, "response.done"))["response"]
        self.soak.counts[f"response {response['status']}"] += 1
        if response["status"] == "failed":
            self.soak.check_code(response["status_details"]["error"]["code"])

    async def interrupt(self):
        async with self.session() as socket:
            if await self.begin(socket):
                await self.say(socket, 1)
                if (await self.read(socket, "response.output_audio.delta", "response.done"))["type"] != "response.done":
                    await self.say(socket, 1)
                    await self.answer(socket)

    async def leave(self):
        """Go in mid-answer, without a word or in due form."""
        async with self.session() as socket:
            if await self.begin(socket):
                await self.say(socket, 1)
                await self.read(socket, "response.output_audio.delta", "response.done")
                if self.random.random() < 0.5:
                    socket.transport.abort()

    async def send_garbage(self):
        async with self.session() as socket:
            if not await self.begin(socket):
                return
            for text, code in self.random.sample(list(GARBAGE.items()), 4):
                await socket.send(text)
                self.soak.check_code((await self.read(socket, "error"))["error"]["code"], {code})
            await self.say(socket, 1)  # the session still works
            await self.answer(socket)

    async def break_off(self):
        """Send half a frame, or far too much."""
        async with self.session() as socket:
            if not await self.begin(socket):
                return
            if self.random.random() < 0.7:
                socket.transport.write(b"\x81\xfe\x10\x00" + bytes(100))
                await asyncio.sleep(0.1)
                socket.transport.abort()
                return
            try:
                await socket.send("x" * 100_000_000)
                await self.read(socket, "session.updated")
            except ConnectionClosed as error:
                self.soak.counts["closed: too large"] += error.rcvd is not None and error.rcvd.code == 1009

    async def upload(self):
        """Use the HTTP endpoints, with good and with bad files."""
        file, is_good = io.BytesIO(), self.random.random() < 0.5
        wave = speech(1, 8000) if is_good else np.full(8000, np.nan)
        soundfile.write(file, wave, 8000, format="WAV", subtype="FLOAT")
        async with httpx.AsyncClient(base_url=self.soak.server.url, timeout=STUCK_SECONDS) as client:
            fields = {"data": {"model": self.soak.server.name}, "files": {"file": ("a.wav", file.getvalue())}}
            response = await client.post("/v1/audio/transcriptions", **fields)
            self.soak.counts[f"upload {response.status_code}"] += 1
            if response.status_code != 200:
                self.soak.check_code(response.json()["error"]["code"], () if is_good else {"invalid_value"})


async def watch(soak, start):
    """Sample the server about each second."""
    process = psutil.Process(soak.server.process.pid)
    async with httpx.AsyncClient(base_url=soak.server.url, timeout=STUCK_SECONDS) as client:
        while time.monotonic() < soak.end:
            text = (await client.get("/metrics")).text
            values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
            gauges = [float(values[f"vita_audio_{name}"]) for name in ("sessions", "streams", "queue")]
            memory = process.memory_info().rss / 2**20
            row = (time.monotonic() - start, memory, *gauges, process.num_threads(), process.num_fds())
            soak.samples.append(row)
            await asyncio.sleep(1)


async def run_soak(server, num_clients, seconds):
    """Let clients use a server, and return what happened."""
    start = time.monotonic()
    soak = Soak(server, start + seconds)
    await asyncio.gather(watch(soak, start), *(Client(soak, number).run() for number in range(num_clients)))
    return soak

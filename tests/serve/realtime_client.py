"""What several test files say to `/v1/realtime`, with OpenAI's client."""

import base64
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

SPEECH = Path(__file__).parents[1] / "assets" / "speech_tokenizer" / "vq_wav" / "speech_short.wav"
RATE = 24_000
GREEDY = {"temperature": 0, "plan": "boost"}
MANUAL = {"audio": {"input": {"turn_detection": None}}, "generation": GREEDY}


def until(condition):
    """Wait until something holds; only a fault takes minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pcm(wave):
    return base64.b64encode((32767 * wave).astype("<i2").tobytes()).decode()


def silence(seconds, rate=RATE):
    return np.zeros(int(seconds * rate))


def speech(seconds=1.5, rate=RATE):
    wave, file_rate = soundfile.read(SPEECH)
    return soxr.resample(wave[: int(seconds * file_rate)], file_rate, rate)


@contextmanager
def session(server, **config):
    """Open a session; the events of its beginning are read."""
    with server.client.realtime.connect(model=server.name) as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(session={"type": "realtime", **config})
        assert connection.recv().type == "session.updated"
        yield connection


def read_until(connection, *kinds):
    """Return the events up to the first one of these types."""
    events = []
    while not events or events[-1].type not in kinds:
        events.append(connection.recv())
    return events


def append(connection, wave, rate=RATE):
    for start in range(0, len(wave), rate // 10):
        connection.input_audio_buffer.append(audio=pcm(wave[start : start + rate // 10]))


def ask(connection, text):
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    )
    connection.response.create()
    return read_until(connection, "response.done", "error")

"""Text and speech of a real vLLM server with verified drafts are those of our own model.

vLLM runs in its own environment, which third_party/vllm_plugin/setup_env.sh makes; ENGINE_VENV names another folder.
"""

import os
import socket
import subprocess
import time
from itertools import zip_longest
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from toy_conversations import CONVERSATIONS, wave_of

from vita_audio.inference.engine import EngineLM
from vita_audio.inference.tasks import make_conversation

PYTHON = Path(os.environ.get("ENGINE_VENV", Path(__file__).parents[2] / ".venv_vllm")) / "bin" / "python"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason=f"needs vLLM, as in {PYTHON}")]

ANSWER = {"max_new_tokens": 60}


@pytest.fixture(scope="module")
def url(toy_folders, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", port, "--dtype", "float32", "--enforce-eager"]
    options += ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}']
    command = [PYTHON, "-m", "vita_audio_vllm", toy_folders.model, *options]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as file:
        server = subprocess.Popen(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        while not answers(f"{url}/health"):
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def answers(url):
    try:
        return urlopen(url, timeout=10).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def engine_lm(url, speech_lm, toy_folders):
    return EngineLM.connect(url, toy_folders.model, speech_lm.audio_tokenizer)


def test_answers_in_a_batch(speech_lm, engine_lm):
    expected = speech_lm.respond_batch(CONVERSATIONS, "vanilla", **ANSWER)
    for response, other in zip(engine_lm.respond_batch(CONVERSATIONS, **ANSWER), expected, strict=True):
        assert response.ids == other.ids and response.text == other.text
        assert torch.equal(response.wave, other.wave)
    assert any(len(response.wave) for response in expected)


def test_streams_at_once(speech_lm, engine_lm):
    streams = [engine_lm.stream(conversation, **ANSWER) for conversation in CONVERSATIONS]
    for chunks, conversation in zip(zip(*zip_longest(*streams), strict=True), CONVERSATIONS, strict=True):
        expected = list(speech_lm.stream(conversation, "vanilla", **ANSWER))
        assert torch.equal(wave_of([chunk for chunk in chunks if chunk is not None]), wave_of(expected))


def test_a_prompt_beyond_the_length_is_refused_in_one_line(engine_lm):
    with pytest.raises(ValueError, match="must fit into the model's 512 positions"):
        engine_lm.stream(make_conversation("asr", audio=[5] * 520))
    with pytest.raises(ValueError, match="refused /v1/completions: .*maximum context length is 512 tokens") as caught:
        engine_lm.engine.generate([5] * 520, max_tokens=1)  # a client of its own
    assert "\n" not in str(caught.value)


def test_a_closed_stream_frees_its_place_on_the_engine(url, engine_lm):
    stream = engine_lm.stream(CONVERSATIONS[0], max_new_tokens=400)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    while not is_idle(urlopen(f"{url}/metrics").read().decode()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_idle(metrics):
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")]
    return bool(lines) and all(float(line.rsplit(" ", 1)[1]) == 0 for line in lines)

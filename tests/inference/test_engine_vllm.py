"""Text and speech of a real vLLM server are those of our own model."""

import time
from itertools import zip_longest
from urllib.request import urlopen

import pytest
import torch
from toy_conversations import CONVERSATIONS, PLUS_CONVERSATIONS, wave_of
from toy_speech_lm import load_toy
from vllm_server import needs_vllm, run_vllm

from vita_audio.inference.engine import EngineLM
from vita_audio.inference.tasks import make_conversation

pytestmark = [pytest.mark.slow, needs_vllm]

ANSWER = {"max_new_tokens": 60}
ONE_DRAFT = ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')


@pytest.fixture(scope="module")
def url(toy_folders, tmp_path_factory):
    with run_vllm(toy_folders.model, tmp_path_factory.mktemp("server"), *ONE_DRAFT) as url:
        yield url


@pytest.fixture(scope="module")
def engine_lm(url, speech_lm, toy_folders):
    return EngineLM.connect(url, toy_folders.model, speech_lm.audio_tokenizer)


def check_batch(speech_lm, engine_lm, conversations):
    expected = speech_lm.respond_batch(conversations, "vanilla", **ANSWER)
    for response, other in zip(engine_lm.respond_batch(conversations, **ANSWER), expected, strict=True):
        assert response.ids == other.ids and response.text == other.text
        assert torch.equal(response.wave, other.wave)
    assert any(len(response.wave) for response in expected)


def test_answers_in_a_batch(speech_lm, engine_lm):
    check_batch(speech_lm, engine_lm, CONVERSATIONS)


def test_answers_to_continuous_audio(plus_folders, tmp_path):
    plus_lm = load_toy(plus_folders)
    with run_vllm(plus_folders.model, tmp_path) as url:
        check_batch(plus_lm, EngineLM.connect(url, plus_folders.model, plus_lm.audio_tokenizer), PLUS_CONVERSATIONS)


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

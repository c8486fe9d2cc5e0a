"""The log has a line of JSON for each answer, without its content unless that is asked for."""

import io
import json
import logging
import time

import openai
import pytest
import torch
from realtime_client import MANUAL, ask, read_until, session, until
from toy_server import serve

from vita_audio.inference.response import Chunk
from vita_audio.serve import records
from vita_audio.serve.scheduler import Piece, Seconds
from vita_audio.serve.settings import Limits

QUESTION = {"model": "toy", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def lines():
    """Read what has been logged as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(records.JsonFormatter())
    records.log.addHandler(handler)
    records.log.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    records.log.removeHandler(handler)
    records.log.setLevel(logging.NOTSET)


def test_a_turn_has_its_times_its_tokens_and_its_outcome(server, lines):
    with session(server, **MANUAL) as connection:
        response = ask(connection, "hello")[-1].response
    (line,) = lines()
    metadata = response.metadata
    assert (line["event"], line["endpoint"], line["level"]) == ("answer", "realtime", "INFO")
    assert line["session"].startswith("sess_") and line["outcome"] == response.status
    assert (line["prompt_tokens"], line["answer_tokens"]) == (response.usage.input_tokens, response.usage.output_tokens)
    for name in ("first_sound_ms", "vad_ms", "encoder_ms", "model_ms", "decoder_ms", "wait_ms", "early_ms"):
        assert str(line[name]) == metadata[name]
    assert line["audio_seconds"] > 0 and line["real_time_factor"] > 0
    transcript = response.output[0].content[0].transcript
    assert "hello" not in str(line) and transcript and transcript not in str(line)


def test_content_is_logged_if_asked_for(speech_lm, lines):
    with serve(speech_lm, log_content=True) as server:
        text = server.client.chat.completions.create(**QUESTION).choices[0].message.content
    (line,) = lines()
    assert (line["endpoint"], line["question"], line["answer"].strip()) == ("chat", "hello", text)


@pytest.fixture
def slow_speech_lm(speech_lm, monkeypatch):
    """Takes seconds for an answer, so that none ends before its client cancels it or leaves."""
    stream = speech_lm.stream

    def slow_stream(*args, **options):
        for chunk in stream(*args, **options):
            yield chunk
            time.sleep(0.1)

    monkeypatch.setattr(speech_lm, "stream", slow_stream)
    return speech_lm


def begin_answer(connection):
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    )
    connection.response.create()
    read_until(connection, "response.output_audio_transcript.delta", "error")


def test_errors_and_cancelled_answers_have_their_reasons(slow_speech_lm, lines):
    with serve(slow_speech_lm, limits=Limits(max_new_tokens=400, max_streams=1, max_queue=1)) as server:
        with pytest.raises(openai.BadRequestError):
            server.client.chat.completions.create(**QUESTION, temperature=9)
        with session(server, **MANUAL) as connection:
            begin_answer(connection)
            connection.response.cancel()
            read_until(connection, "response.done")
            begin_answer(connection)
        until(lambda: len(lines()) == 3)
    told = [(line["event"], line.get("code") or (line["outcome"], line["reason"])) for line in lines()]
    assert told == [
        ("error", "invalid_value"),
        ("answer", ("cancelled", "client_cancelled")),
        ("answer", ("cancelled", "client_left")),
    ]


@pytest.mark.parametrize(
    ("early", "waited", "parts"),
    [
        (0, 0.5, {"wait": 0.2, "early": 0}),
        (0.2, 0.4, {"wait": 0.3, "early": 0.2}),
        (0.2, 0.05, {"wait": 0, "early": 0.25}),  # a stage was in progress, whose time is known only at its end
        (1, 0.05, {"wait": 0.05, "early": 0.3}),  # all of it, and of the sound after it
    ],
)
def test_the_first_sound_is_the_sum_of_its_parts_less_what_was_done_early(monkeypatch, early, waited, parts):
    monkeypatch.setattr(records, "perf_counter", lambda: 10 + waited)
    record = records.Record("realtime", start=10, early=early, vad_seconds=0.4)
    record.add(Piece(Chunk(wave=torch.zeros(1)), Seconds(encoder=0.1, model=0.05, decoder=0.15)))
    found = dict(record.first_sound)
    assert {name: found[name] for name in parts} == pytest.approx(parts)
    total, done = found.pop("first_sound"), found.pop("early")
    assert total == pytest.approx(0.4 + waited) == pytest.approx(sum(found.values()) - done)

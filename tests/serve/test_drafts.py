"""Answers that begin in a pause, before the end of a turn is certain: they are the answers to the turn as it ends."""

import time

import numpy as np
import pytest
import torch
from realtime_client import GREEDY, append, read_until, session, silence, speech, until
from toy_server import serve

from vita_audio.serve.settings import Limits
from vita_audio.serve.turns import VAD_RATE, SpeechStopped, TurnDetector, load_vad

NUM_TOKENS = 60
PAUSE = silence(0.3, VAD_RATE)  # long enough for a draft, too short for the end of a turn
CONFIG = {"generation": GREEDY, "audio": {"input": {"format": {"type": "audio/pcm", "rate": VAD_RATE}}}}


def question(seconds=1.5):
    """Speech as the server gets it, at the rate of turn detection, so that nothing is resampled."""
    return np.concatenate([silence(0.5, VAD_RATE), speech(seconds, VAD_RATE), PAUSE])


@pytest.fixture
def server(speech_lm, monkeypatch):
    """Answers take a second, so that a draft is in progress while a test looks; its counts begin at 0."""
    open_stream = speech_lm.stream

    def slowly(stream):
        for chunk in stream:
            yield chunk
            time.sleep(0.1 if len(chunk.wave) else 0)

    monkeypatch.setattr(speech_lm, "stream", lambda *args, **options: slowly(open_stream(*args, **options)))
    with serve(speech_lm, limits=Limits(max_new_tokens=NUM_TOKENS)) as server:
        yield server


def count(server, outcome):
    """Return how many drafts had an outcome."""
    return server.service.metrics.registry.get_sample_value("vita_audio_drafts_total", {"outcome": outcome}) or 0


def is_drafting(server):
    return server.service.scheduler.num_active == 1


def say(connection, wave):
    append(connection, wave, VAD_RATE)


def end_turn(connection):
    say(connection, silence(0.6, VAD_RATE))
    return read_until(connection, "response.done")[-1].response


def expected(server, wave, system=None):
    """Return the words of the answer to a turn, and the numbers of tokens of its prompt and of the answer.

    Args:
        wave: All that is said, from which the turn is cut at once.
    """
    wave = torch.from_numpy((32767 * wave).astype("<i2")).float() / 32768
    options = {"threshold": 0.5, "prefix_padding_ms": 200, "silence_duration_ms": 400, "max_seconds": 30}
    (turn,) = (event for event in TurnDetector(load_vad(), **options).push(wave) if isinstance(event, SpeechStopped))
    messages = [{"role": "user", "content": "<|audio|>"}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    sample, speech_lm = {"messages": messages, "audios": [(turn.wave, VAD_RATE)]}, server.service.speech_lm
    response = speech_lm.respond(sample, "boost", do_sample=False, max_new_tokens=NUM_TOKENS)
    return response.text, len(speech_lm.prompt_ids(sample)), len(response.ids)


def told(response):
    return response.output[0].content[0].transcript, response.usage.input_tokens, response.usage.output_tokens


def test_an_answer_begins_in_the_pause_and_is_that_to_the_whole_turn(server, monkeypatch):
    codec = server.service.speech_lm.audio_tokenizer
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda wave, rate: time.sleep(0.2) or encode(wave, rate))
    with session(server, **CONFIG) as connection:
        say(connection, question())
        until(lambda: is_drafting(server))
        time.sleep(0.5)  # the first sound is made before the turn ends
        response = end_turn(connection)
    assert (count(server, "used"), count(server, "dropped")) == (1, 0)
    assert told(response) == expected(server, np.concatenate([question(), silence(0.6, VAD_RATE)]))
    parts = {name: int(value) for name, value in response.metadata.items() if name.endswith("_ms")}
    early = parts.pop("early_ms")
    assert parts["encoder_ms"] >= 200 and early > 100
    assert parts.pop("first_sound_ms") == pytest.approx(sum(parts.values()) - early, abs=4)


def test_a_turn_that_goes_on_gets_the_answer_to_all_of_it(server):
    more = np.concatenate([speech(1, VAD_RATE), PAUSE])
    with session(server, **CONFIG) as connection:
        say(connection, question())
        until(lambda: is_drafting(server))
        say(connection, more)
        until(lambda: count(server, "dropped") == 1 and is_drafting(server))
        response = end_turn(connection)
        assert told(response) == expected(server, np.concatenate([question(), more, silence(0.6, VAD_RATE)]))
    assert count(server, "used") == 1


def test_what_a_client_changes_in_a_pause_counts(server):
    with session(server, **CONFIG) as connection:
        say(connection, question())
        until(lambda: is_drafting(server))
        connection.session.update(session={"type": "realtime", "instructions": "be kind"})
        read_until(connection, "session.updated")
        assert count(server, "dropped") == 1
        response = end_turn(connection)
    assert told(response) == expected(server, np.concatenate([question(), silence(0.6, VAD_RATE)]), "be kind")


def test_who_asks_for_answers_gets_no_draft(server):
    detection = {"turn_detection": {"type": "server_vad", "create_response": False}}
    with session(server, **CONFIG) as connection:
        connection.session.update(session={"type": "realtime", "audio": {"input": detection}})
        say(connection, question())
        say(connection, silence(0.6, VAD_RATE))
        read_until(connection, "conversation.item.done")
    assert (count(server, "used"), count(server, "dropped")) == (0, 0)


def test_a_draft_waits_for_nobody_and_nobody_waits_for_it(server):
    """While another answer is in progress, a turn is answered at its end."""
    with session(server, **CONFIG) as connection, session(server, **CONFIG) as other:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
        other.conversation.item.create(item=item)
        other.response.create()
        read_until(other, "response.output_audio.delta")
        say(connection, question())
        say(connection, silence(0.6, VAD_RATE))
        read_until(connection, "response.created")
        assert read_until(other, "response.done")[-1].response.status == "incomplete"
        assert read_until(connection, "response.done")[-1].response.status == "incomplete"
    assert (count(server, "used"), count(server, "dropped")) == (0, 0)


def test_a_draft_ends_with_its_connection(server):
    with session(server, **CONFIG) as connection:
        say(connection, question())
        until(lambda: is_drafting(server))
    until(lambda: server.service.scheduler.is_idle)
    assert count(server, "dropped") == 1 and server.service.num_sessions == 0

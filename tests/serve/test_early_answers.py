"""Answers that begin in a pause, before the end of a turn is certain: they are the answers to the turn as it ends."""

import asyncio
import time

import numpy as np
import pytest
import torch
from realtime_client import GREEDY, append, pcm, read_until, session, silence, speech, until
from toy_server import serve

from vita_audio.serve.events import ServerVad
from vita_audio.serve.settings import Limits
from vita_audio.serve.turns import VAD_RATE, SpeechStopped, TurnDetector, load_vad

NUM_TOKENS = 60
PAUSE = silence(0.3, VAD_RATE)  # long enough to begin an answer, too short for the end of a turn
CONFIG = {"generation": GREEDY, "audio": {"input": {"format": {"type": "audio/pcm", "rate": VAD_RATE}}}}


def question(seconds=1.5):
    """Speech as the server gets it, at the rate of turn detection, so that nothing is resampled."""
    return np.concatenate([silence(0.5, VAD_RATE), speech(seconds, VAD_RATE), PAUSE])


@pytest.fixture
def slow_speech_lm(speech_lm, monkeypatch):
    """Takes a second for an answer, so that an early one is in progress while a test looks."""
    open_stream = speech_lm.stream

    def slowly(stream):
        for chunk in stream:
            yield chunk
            time.sleep(0.1 if len(chunk.wave) else 0)

    monkeypatch.setattr(speech_lm, "stream", lambda *args, **options: slowly(open_stream(*args, **options)))
    return speech_lm


@pytest.fixture
def server(slow_speech_lm):
    """Its counts begin at 0."""
    with serve(slow_speech_lm, limits=Limits(max_new_tokens=NUM_TOKENS)) as server:
        yield server


def count(server, outcome):
    """Return how many early answers had an outcome."""
    return server.service.metrics.registry.get_sample_value("vita_audio_early_answers_total", {"outcome": outcome}) or 0


def is_answering(server):
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
    options = ServerVad().model_dump(include={"threshold", "prefix_padding_ms", "silence_duration_ms"})
    detector = TurnDetector(load_vad(), **options, max_seconds=Limits().max_audio_seconds)
    (turn,) = (event for event in detector.push(wave) if isinstance(event, SpeechStopped))
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
        until(lambda: is_answering(server))
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
        until(lambda: is_answering(server))
        say(connection, more)
        until(lambda: count(server, "dropped") == 1 and is_answering(server))
        response = end_turn(connection)
        assert told(response) == expected(server, np.concatenate([question(), more, silence(0.6, VAD_RATE)]))
    assert count(server, "used") == 1


def test_a_turn_that_goes_on_and_ends_in_one_piece_gets_the_answer_to_all_of_it(server):
    more = np.concatenate([speech(1, VAD_RATE), silence(0.6, VAD_RATE)])
    with session(server, **CONFIG) as connection:
        say(connection, question())
        until(lambda: is_answering(server))
        connection.input_audio_buffer.append(audio=pcm(more))
        response = read_until(connection, "response.done")[-1].response
    assert told(response) == expected(server, np.concatenate([question(), more]))
    assert (count(server, "used"), count(server, "dropped")) == (0, 1)


def test_what_a_client_changes_in_a_pause_counts(server):
    with session(server, **CONFIG) as connection:
        say(connection, question())
        until(lambda: is_answering(server))
        connection.session.update(session={"type": "realtime", "instructions": "be kind"})
        read_until(connection, "session.updated")
        assert count(server, "dropped") == 1
        response = end_turn(connection)
    assert told(response) == expected(server, np.concatenate([question(), silence(0.6, VAD_RATE)]), "be kind")


def test_who_asks_for_each_answer_gets_none_early(server):
    detection = {"turn_detection": {"type": "server_vad", "create_response": False}}
    with session(server, **CONFIG) as connection:
        connection.session.update(session={"type": "realtime", "audio": {"input": detection}})
        say(connection, question())
        say(connection, silence(0.6, VAD_RATE))
        read_until(connection, "conversation.item.done")
    assert (count(server, "used"), count(server, "dropped")) == (0, 0)


def ask_aside(connection):
    """Ask in a session of one's own while others talk."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    connection.conversation.item.create(item=item)
    connection.response.create()


def test_while_another_is_answered_no_answer_begins_early(server):
    with session(server, **CONFIG) as connection, session(server, **CONFIG) as other:
        ask_aside(other)
        read_until(other, "response.output_audio.delta")
        say(connection, question())
        say(connection, silence(0.6, VAD_RATE))
        read_until(connection, "response.created")
        for client in (connection, other):
            assert read_until(client, "response.done")[-1].response.status == "incomplete"
    assert (count(server, "used"), count(server, "dropped")) == (0, 0)


def test_no_answer_begins_early_while_the_last_one_is_still_sent(server, monkeypatch):
    """The model is done with it, but the history does not have all of it yet."""
    pieces = server.service.pieces

    async def slow_pieces(answer, record):
        async for piece in pieces(answer, record):
            yield piece
            await asyncio.sleep(0.3)

    monkeypatch.setattr(server.service, "pieces", slow_pieces)
    detection = {"turn_detection": {"type": "server_vad", "interrupt_response": False}}
    with session(server, **CONFIG) as connection:
        connection.session.update(session={"type": "realtime", "audio": {"input": detection}})
        ask_aside(connection)
        read_until(connection, "response.output_audio.delta")
        until(lambda: server.service.scheduler.is_idle)
        say(connection, question())
        read_until(connection, "input_audio_buffer.speech_started")
        connection.input_audio_buffer.append(audio=pcm(silence(0.1, VAD_RATE)))
        connection.input_audio_buffer.clear()
        read_until(connection, "input_audio_buffer.cleared")
        assert server.service.scheduler.is_idle
    assert (count(server, "used"), count(server, "dropped")) == (0, 0)


def test_who_asks_does_not_wait_for_what_nobody_has_asked_for(slow_speech_lm):
    """Even with room for one answer only; the turn is then answered at its end."""
    limits = Limits(max_new_tokens=NUM_TOKENS, max_streams=1, max_queue=0)
    with (
        serve(slow_speech_lm, limits=limits) as server,
        session(server, **CONFIG) as connection,
        session(server, **CONFIG) as other,
    ):
        say(connection, question())
        until(lambda: is_answering(server))
        ask_aside(other)
        events = read_until(other, "response.done")
        assert events[-1].response.status == "incomplete" and "vita.queue" not in [event.type for event in events]
        assert told(end_turn(connection)) == expected(server, np.concatenate([question(), silence(0.6, VAD_RATE)]))
        assert (count(server, "used"), count(server, "dropped")) == (0, 1)


def test_an_early_answer_ends_with_its_connection(server):
    with session(server, **CONFIG) as connection:
        say(connection, question())
        until(lambda: is_answering(server))
    until(lambda: server.service.scheduler.is_idle)
    assert count(server, "dropped") == 1 and server.service.num_sessions == 0

"""Sessions of `/v1/realtime` with OpenAI's own client, on a tiny model and real speech."""

import base64
import json

import numpy as np
import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from realtime_client import GREEDY, MANUAL, RATE, append, ask, pcm, read_until, session, silence, speech
from toy_server import serve

from vita_audio.serve.conversation import Item
from vita_audio.serve.settings import Limits


def types(events):
    return [event.type for event in events]


def item_of(events):
    return next(event.item for event in events if event.type == "response.output_item.done")


def test_a_spoken_turn_is_detected_and_answered(server):
    with session(server, generation=GREEDY) as connection:
        append(connection, np.concatenate([silence(0.5), speech(), silence(1)]))
        events = read_until(connection, "response.done")
    assert types(events)[:6] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
    ]
    assert len({event.item_id for event in events[:3]} | {events[3].item.id}) == 1
    assert [event.previous_item_id for event in events if event.type == "conversation.item.done"] == [
        None,
        events[3].item.id,
    ]
    assert 200 <= events[0].audio_start_ms <= 700 and 1500 <= events[1].audio_end_ms <= 2400
    audio = b"".join(base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")
    deltas = [event.delta for event in events if event.type == "response.output_audio_transcript.delta"]
    response = events[-1].response
    assert response.status == "completed" or response.status_details.reason == "max_output_tokens"
    assert response.output[0].content[0].transcript == "".join(deltas)
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_token_details.audio_tokens >= 12.5 * 1.3  # codes of the turn
    codec = server.service.speech_lm.audio_tokenizer
    assert len(audio) / 2 / RATE == pytest.approx(usage.output_token_details.audio_tokens / codec.frame_rate, abs=0.05)
    metadata = response.metadata
    parts = {name: int(value) for name, value in metadata.items() if name.endswith("_ms")}
    early = parts.pop("early_ms")  # of the others
    assert parts.pop("first_sound_ms") == pytest.approx(sum(parts.values()) - early, abs=5)  # each is rounded
    assert 350 <= parts["vad_ms"] <= 450 and parts["model_ms"] > 0  # the silence that it waits for is 400 ms
    assert set(parts) == {"vad_ms", "encoder_ms", "model_ms", "decoder_ms", "wait_ms"}
    assert min(parts.values()) >= 0 and float(metadata["tokens_per_pass"]) > 1 and "verified" not in metadata


def test_events_are_those_of_the_client(server):
    """All of them are validated, since the client itself accepts anything."""
    config = {"type": "realtime", "audio": {"input": {"transcription": {"model": "toy"}}}, "generation": GREEDY}
    with server.client.realtime.connect(model="toy") as connection:
        connection.session.update(session=config)
        append(connection, np.concatenate([silence(0.5), speech(), silence(1)]))
        events = read_until(connection, "conversation.item.input_audio_transcription.completed")
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        events += ask(connection, "hello")
        connection.input_audio_buffer.clear()
        connection.response.cancel()
        events += read_until(connection, "error")
    for event in events:
        TypeAdapter(RealtimeServerEvent).validate_python(event.to_dict())
    assert len({event.event_id for event in events}) == len(events) and len(set(types(events))) >= 20


def test_an_answer_tells_how_many_predictions_were_accepted(server):
    generation = GREEDY | {"acceptance": 1}
    with session(server, **MANUAL | {"generation": generation}) as connection:
        response = ask(connection, "hello")[-1].response
    expected = server.service.speech_lm.respond(
        {"messages": [{"role": "user", "content": "hello"}]}, "boost", do_sample=False, max_new_tokens=40, acceptance=1
    )
    counts, metadata = expected.timings.counts, response.metadata
    assert sum(counts.num_verified) > 0 and response.usage.output_tokens == counts.num_tokens
    told = (metadata["verified"], metadata["accepted"])
    assert told == (str(sum(counts.num_verified)), str(sum(counts.num_accepted)))
    assert metadata["tokens_per_pass"] == f"{counts.tokens_per_pass:.2f}"


def test_push_to_talk_gives_the_answer_of_the_model(server):
    """At 16 kHz, as the page sends it, nothing is resampled, so that the answer is exactly known."""
    wave = (32767 * speech(rate=16_000)).astype("<i2")
    with session(server, **MANUAL) as connection:
        config = {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}}
        connection.session.update(session=config)
        updated = connection.recv()
        assert updated.session.audio.input.turn_detection is None  # what an update leaves out is kept
        append(connection, wave / 32767, 16_000)
        connection.input_audio_buffer.commit()
        assert read_until(connection, "conversation.item.done")[0].type == "input_audio_buffer.committed"
        connection.response.create(response={"output_modalities": ["text"]})
        events = read_until(connection, "response.done")
    assert "response.output_audio.delta" not in types(events)
    speech_lm = server.service.speech_lm
    conversation = {
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [((wave / np.float32(32768)), 16_000)],
    }
    expected = speech_lm.respond(conversation, "boost", do_sample=False, max_new_tokens=40)
    assert events[-1].response.output[0].content[0].text == expected.text
    assert events[-1].response.usage.output_tokens == len(expected.ids)


def test_speech_over_an_answer_stops_it_and_the_history_keeps_what_was_heard(speech_lm):
    with (
        serve(speech_lm, limits=Limits(max_new_tokens=400)) as server,
        session(server, generation=GREEDY) as connection,
    ):
        append(connection, np.concatenate([silence(0.5), speech(), silence(1)]))
        events = read_until(connection, "response.output_audio.delta")
        append(connection, speech())
        events += read_until(connection, "response.done")
        assert types(events).count("input_audio_buffer.speech_started") == 2
        response = events[-1].response
        assert (response.status, response.status_details.reason) == ("cancelled", "turn_detected")
        assert response.usage.output_tokens < 400  # it would not have ended before
        connection.conversation.item.truncate(item_id=item_of(events).id, content_index=0, audio_end_ms=300)
        truncated = connection.recv()
        assert (truncated.type, truncated.audio_end_ms) == ("conversation.item.truncated", 300)
        append(connection, silence(1))
        usage = read_until(connection, "response.done")[-1].response.usage
    # two questions of at most 2.2 s, and of the answer the codes of 300 ms
    num_heard = -(-300 * speech_lm.audio_tokenizer.frame_rate // 1000)
    first = response.usage.input_token_details.audio_tokens
    assert usage.input_token_details.audio_tokens - 2 * first == pytest.approx(num_heard, abs=8)
    assert usage.input_token_details.audio_tokens < first + response.usage.output_token_details.audio_tokens + first


def test_a_later_turn_has_the_answers_before_it(server):
    speech_lm = server.service.speech_lm
    conversation = {"messages": [{"role": "system", "content": "Be brief."}], "audios": []}
    with session(server, instructions="Be brief.", **MANUAL) as connection:
        for text in ("hello", "and now", "again"):
            events = ask(connection, text)
            conversation["messages"].append({"role": "user", "content": text})
            expected = speech_lm.respond(conversation, "boost", do_sample=False, max_new_tokens=40)
            answer = Item("", "assistant", expected.text, ids=expected.ids)
            conversation["messages"].append(answer.message(speech_lm.tokenizer))
            assert events[-1].response.output[0].content[0].transcript == expected.text
            assert events[-1].response.usage.output_tokens == len(expected.ids)


def test_a_response_can_be_cancelled_and_truncated_to_nothing(speech_lm):
    with serve(speech_lm, limits=Limits(max_new_tokens=400)) as server, session(server, **MANUAL) as connection:
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
        )
        connection.response.create()
        item = read_until(connection, "response.output_item.added")[-1].item
        connection.response.create()
        assert read_until(connection, "error")[-1].error.code == "conversation_already_has_active_response"
        connection.response.cancel()
        response = read_until(connection, "response.done")[-1].response
        assert (response.status, response.status_details.reason) == ("cancelled", "client_cancelled")
        connection.response.cancel()
        assert connection.recv().error.code == "response_cancel_not_active"
        connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=0)
        assert connection.recv().type == "conversation.item.truncated"
        usage = ask(connection, "x")[-1].response.usage
        messages = [{"role": "user", "content": "hello"}, {"role": "user", "content": "x"}]
        assert usage.input_tokens == len(speech_lm.prompt_ids({"messages": messages}))


def test_the_users_words_are_transcribed_after_the_answer(server):
    config = {"audio": {"input": {"turn_detection": None, "transcription": {"model": "toy"}}}, "generation": GREEDY}
    with session(server, **config) as connection:
        append(connection, speech())
        connection.input_audio_buffer.commit()
        connection.response.create()
        kind = "conversation.item.input_audio_transcription.completed"
        events = read_until(connection, kind)
    item = next(event.item for event in events if event.type == "conversation.item.added")
    assert events[-1].item_id == item.id and events[-1].usage.type == "tokens"
    assert types(events).index("response.done") < types(events).index(kind)


def test_a_turn_is_transcribed_once(server):
    config = {"audio": {"input": {"turn_detection": None, "transcription": {"model": "toy"}}}, "generation": GREEDY}
    kind, transcribed = "conversation.item.input_audio_transcription.completed", []
    with session(server, **config) as connection:
        for _ in range(2):
            append(connection, speech())
            connection.input_audio_buffer.commit()
            for _ in range(2):  # the second answer is to the same turn, since nobody heard the first
                connection.response.create()
                events = read_until(connection, "response.done")
                item = next(event.item for event in events if event.type == "response.output_item.added")
                connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=0)
                events += read_until(connection, "conversation.item.truncated")
                transcribed += [event.item_id for event in events if event.type == kind]
        while len(transcribed) < 2:
            transcribed.append(read_until(connection, kind)[-1].item_id)
    assert len(set(transcribed)) == len(transcribed) == 2


def test_a_turn_that_is_not_answered_is_transcribed(server):
    """Some clients only want the words."""
    config = {"audio": {"input": {"turn_detection": None, "transcription": {"model": "toy"}}}}
    with session(server, **config) as connection:
        append(connection, speech())
        connection.input_audio_buffer.commit()
        kind = "conversation.item.input_audio_transcription.completed"
        events = read_until(connection, kind)
    assert "response.created" not in types(events) and events[-1].item_id == events[0].item_id


def test_a_response_whose_prompt_is_not_read_has_no_input_tokens(server):
    with session(server, **MANUAL) as connection:
        assert ask(connection, "hello")[-1].response.usage.input_tokens > 0
        response = ask(connection, "word " * 700)[-1].response
    assert response.status == "failed" and "must fit into the model's" in response.status_details.error.message
    assert response.usage.input_tokens == response.usage.input_token_details.text_tokens == 0


def test_an_answer_is_not_answered(server):
    with session(server, **MANUAL) as connection:
        ask(connection, "hello")
        connection.response.create()
        error = connection.recv().error
        assert error.code == "conversation_already_answered" and "add one of the user" in error.message
        assert ask(connection, "hello")[-1].response.status != "failed"


SHORT_AUDIO = {"type": "input_audio", "audio": pcm(np.zeros(100))}
WRONG = {
    "not JSON": ("{", "invalid_event"),
    "not an object": ("[1]", "invalid_event"),
    "no type": ("{}", "invalid_event"),
    "bytes": (b"\x00\x01", "invalid_event"),
    "many digits": ('{"type": ' + 5000 * "1" + "}", "invalid_event"),
    "no character": ('{"type": "session.update", "session": {"\\ud800": 1}}', "invalid_value"),
    "long name": ({"type": "session.update", "session": {"model": 300 * "x"}}, "invalid_value"),
    "long plan": ({"type": "session.update", "session": {"generation": {"plan": 300 * "1 "}}}, "invalid_value"),
    "late time": (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 10**400},
        "invalid_value",
    ),
    "nesting": ("[" * 100_000, "invalid_event"),
    "unknown event": ({"type": "conversation.item.delete", "item_id": "x"}, "unknown_event"),
    "private name": ({"type": "_init_"}, "unknown_event"),
    "unknown field": ({"type": "session.update", "session": {"type": "realtime", "tools": []}}, "unknown_parameter"),
    "voice": ({"type": "session.update", "session": {"audio": {"output": {"voice": "alloy"}}}}, "invalid_value"),
    "transcription": (
        {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "whisper-1"}}}}},
        "invalid_value",
    ),
    "no tokens": ({"type": "session.update", "session": {"max_output_tokens": 0}}, "invalid_value"),
    "half a token": ({"type": "session.update", "session": {"max_output_tokens": 1.5}}, "invalid_value"),
    "short audio": (
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [SHORT_AUDIO]}},
        "invalid_value",
    ),
    "8 kHz": (
        {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}}},
        "invalid_value",
    ),
    "plan": ({"type": "session.update", "session": {"generation": {"plan": "fast"}}}, "invalid_value"),
    "not a number": ('{"type": "session.update", "session": {"generation": {"temperature": NaN}}}', "invalid_value"),
    "model": ({"type": "session.update", "session": {"model": "other"}}, "invalid_value"),
    "base64": ({"type": "input_audio_buffer.append", "audio": "&"}, "invalid_value"),
    "half a sample": ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "invalid_value"),
    "empty buffer": ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
    "no conversation": ({"type": "response.create"}, "conversation_empty"),
    "no item": (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 1},
        "item_not_found",
    ),
    "long text": ({"type": "session.update", "session": {"instructions": "x" * 5000}}, "invalid_value"),
}


def test_wrong_events_get_an_error_and_the_session_lives_on(server):
    with session(server, **MANUAL) as connection:
        for name, (event, code) in WRONG.items():
            connection.send_raw(event if isinstance(event, str | bytes) else json.dumps({**event, "event_id": "mine"}))
            error = connection.recv()
            assert (name, error.type, error.error.code) == (name, "error", code)
            assert error.error.event_id == ("mine" if isinstance(event, dict) else None), name
        assert error.error.message == "text must have at most 4000 characters, got 5000"
        assert ask(connection, "hello")[-1].type == "response.done"


def test_a_turn_that_is_too_long_is_refused_or_ended(speech_lm):
    with serve(speech_lm, limits=Limits(max_new_tokens=10, max_audio_seconds=1)) as server:
        with session(server, **MANUAL) as connection:
            connection.input_audio_buffer.append(audio=pcm(silence(1.1)))
            assert connection.recv().error.code == "buffer_full"
        with session(server, generation=GREEDY) as connection:
            append(connection, np.concatenate([silence(0.5), speech(3)]))
            stopped = read_until(connection, "input_audio_buffer.speech_stopped")[-1]
            assert 1000 <= stopped.audio_end_ms <= 2000

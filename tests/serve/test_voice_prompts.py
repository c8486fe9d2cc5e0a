"""A voice prompt changes how an answer sounds, and nothing that the language model reads or says."""

import asyncio
import base64

import pytest
import torch
from realtime_client import MANUAL, ask, pcm, session, silence, speech

from vita_audio.serve.conversation import Conversation, Item
from vita_audio.serve.records import Record
from vita_audio.serve.scheduler import Piece

GREEDY = {"plan": "boost", "do_sample": False, "max_new_tokens": 40}
SECONDS = 2.0


def update(connection, voice_prompt):
    connection.session.update(session={"type": "realtime", "generation": {"voice_prompt": voice_prompt}})
    return connection.recv()


def sound(events):
    return b"".join(base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")


def transcript(events):
    return "".join(event.delta for event in events if event.type == "response.output_audio_transcript.delta")


def test_a_voice_changes_the_sound_alone(server):
    answers, usages = [], []
    for prompt in (None, {"audio": pcm(speech(SECONDS, 16_000)), "rate": 16_000}):
        with session(server, **MANUAL) as connection:
            told = update(connection, prompt).session.to_dict()["generation"]["voice_prompt"]
            assert told == (prompt and {"rate": 16_000})  # without the recording
            answers.append(ask(connection, "hello"))
            usages.append(answers[-1][-1].response.usage)
    plain, voiced = map(sound, answers)
    assert len(plain) == len(voiced) > 0 and plain != voiced
    assert transcript(answers[0]) == transcript(answers[1]) and usages[0] == usages[1]


def test_the_language_model_reads_nothing_of_a_voice(server):
    service = server.service
    voice = service.speech_lm.audio_tokenizer.make_voice(torch.from_numpy(speech(SECONDS, 16_000)), 16_000)

    async def answer(voice):
        conversation, record = Conversation([Item("", "user", "hello")]), Record("test")
        submitted = service.submit(conversation, record, voice=voice, **GREEDY)
        pieces = [piece async for piece in service.pieces(submitted, record) if isinstance(piece, Piece)]
        return conversation.prompt, [token_id for piece in pieces for token_id in piece.chunk.ids], record

    (prompt, ids, _), (other_prompt, other_ids, record) = asyncio.run(answer(None)), asyncio.run(answer(voice))
    assert prompt == other_prompt == service.speech_lm.prompt_ids({"messages": [{"role": "user", "content": "hello"}]})
    assert ids == other_ids and record.outcome == "incomplete" and record.num_prompt == len(prompt)


def make_prompt(wave, rate=24_000):
    return {"audio": pcm(wave), "rate": rate}


@pytest.mark.parametrize(
    "prompt, code, message",
    [
        (make_prompt(silence(0.1)), "voice_not_usable", "a voice prompt has 0.5 to 10 s, got 0.10 s"),
        (make_prompt(silence(11)), "voice_not_usable", "a voice prompt has 0.5 to 10 s, got 11.00 s"),
        (make_prompt(silence(1), 8000), "invalid_value", "session.generation.voice_prompt.rate"),
        ({"audio": pcm(silence(1))}, "invalid_value", "session.generation.voice_prompt.rate"),
        ({"audio": "AAAA", "rate": 16_000}, "invalid_value", "voice_prompt.audio must be base64 of 16-bit PCM"),
        (make_prompt(silence(1)) | {"text": "Obey me."}, "unknown_parameter", "voice_prompt.text: not supported"),
    ],
)
def test_a_voice_that_cannot_be_used_is_refused_and_the_session_stays_as_it_is(server, prompt, code, message):
    with session(server, **MANUAL, instructions="Be brief.") as connection:
        error = update(connection, prompt).error
        assert error.code == code and message in error.message
        updated = update(connection, None).session
        assert updated.instructions == "Be brief."


def test_a_codec_without_voices_says_so(server, monkeypatch):
    monkeypatch.setattr(type(server.service.speech_lm.audio_tokenizer), "voice_class", None)
    with session(server, **MANUAL) as connection:
        error = update(connection, make_prompt(silence(1))).error
        assert (error.code, error.param) == ("voice_not_usable", "session.generation.voice_prompt")
        assert "its codes determine the voice" in error.message
        assert update(connection, None).type == "session.updated"

"""Texts of any length are spoken to their end, or the client notices."""

import asyncio
import time

import httpx2 as httpx
import pytest
from toy_server import serve

from vita_audio.inference.response import Chunk
from vita_audio.serve.conversation import Conversation, Item
from vita_audio.serve.records import Record
from vita_audio.serve.scheduler import BusyError, GenerationError, Piece
from vita_audio.serve.service import Service
from vita_audio.serve.settings import Limits
from vita_audio.serve.speech import speak

LIMITS = Limits(max_new_tokens=40, max_streams=1, max_queue=1)
SENTENCE = "seven\n"  # whose answer ends within these tokens, other than most
SAY = {"model": "toy", "voice": "default", "response_format": "pcm"}


def test_a_text_is_spoken_sentence_by_sentence(speech_lm):
    with serve(speech_lm, limits=LIMITS) as server:
        once, often = (server.client.audio.speech.create(**SAY, input=number * SENTENCE).content for number in (1, 3))
        metrics = server.service.metrics.text().decode()
    assert len(once) > 0 and often == 3 * once
    assert 'vita_audio_answers_total{outcome="completed"} 4.0' in metrics
    assert "vita_audio_first_audio_seconds_count 2.0" in metrics  # of the texts


def test_a_text_is_spoken_to_its_end_though_the_queue_is_full(speech_lm):
    async def run():
        service, num_parts = Service({"toy": speech_lm}, LIMITS), 0
        async for piece in speak(service, 2 * SENTENCE):
            if isinstance(piece, Piece) and not piece.chunk.ids:  # the end of a part
                num_parts += 1
                await fill_queue(service)
        service.scheduler.close()
        return num_parts

    assert asyncio.run(run()) == 2


async def fill_queue(service):
    while service.scheduler.num_active:
        await asyncio.sleep(0.01)
    with pytest.raises(BusyError):
        while True:
            service.submit(Conversation([Item("", "user", "one two")]), Record("chat"))


def test_a_server_that_shuts_down_does_not_finish_a_text(speech_lm):
    def endless(answer):
        while True:
            time.sleep(0.01)
            yield Chunk()

    async def run():
        service = Service({"toy": speech_lm}, LIMITS)
        service.scheduler.submit(endless)
        try:
            async for _ in speak(service, SENTENCE):  # which waits
                service.scheduler.close()
        finally:
            service.scheduler.close()

    with pytest.raises(GenerationError, match="the server is shutting down"):
        asyncio.run(run())


def test_an_answer_that_does_not_end_breaks_off(speech_lm, caplog):
    """Its client gets an error after the sound that was made, and the log says why."""
    received = []
    with serve(speech_lm, limits=LIMITS) as server, caplog.at_level("INFO"):
        with server.client.audio.speech.with_streaming_response.create(**SAY, input="hello") as response:
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(response.iter_bytes())
        metrics = httpx.get(f"{server.url}/metrics").text
    assert b"".join(received)
    (fields,) = [record.fields for record in caplog.records if record.msg == "answer"]
    assert (fields["outcome"], fields["reason"]) == ("incomplete", "max_new_tokens")
    assert 'vita_audio_errors_total{code="max_new_tokens"} 1.0' in metrics and "Traceback" not in caplog.text

"""Every turn that a session lets transcribe ends in an event."""

import asyncio

import torch
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from realtime_client import speech

from vita_audio.serve.conversation import Item
from vita_audio.serve.service import Service
from vita_audio.serve.settings import Limits
from vita_audio.serve.transcription import Transcriber

RATE = 16_000


def test_a_turn_for_which_there_is_no_room_fails(speech_lm):
    async def run():
        service, events = Service({"toy": speech_lm}, Limits(max_new_tokens=20, max_turns=2)), []

        async def send(kind, **fields):
            events.append(TypeAdapter(RealtimeServerEvent).validate_python({"type": kind, "event_id": "x", **fields}))

        transcriber = Transcriber(service, send, "session")
        wave = torch.from_numpy(speech(rate=RATE)).float()
        for name in ("first", "second", "third"):
            await transcriber.add(Item(name, "user", audio=(wave, RATE)), None)
        await transcriber.run()
        service.scheduler.close()
        return events, service.metrics.text().decode()

    (failed, *completed), metrics = asyncio.run(run())
    kind = "conversation.item.input_audio_transcription"
    assert (failed.type, failed.item_id, failed.error.code) == (f"{kind}.failed", "first", "server_busy")
    assert [(event.type, event.item_id) for event in completed] == [
        (f"{kind}.completed", "second"),
        (f"{kind}.completed", "third"),
    ]
    assert 'vita_audio_errors_total{code="server_busy"} 1.0' in metrics

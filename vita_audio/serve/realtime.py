"""A session of `/v1/realtime`: audio in, turns, answers out, with the events of OpenAI's Realtime interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from torch import Tensor

from vita_audio.serve import events
from vita_audio.serve.audio import MIN_SECONDS, StreamResampler
from vita_audio.serve.conversation import Conversation, Item, keep_latest, plain_text
from vita_audio.serve.events import EventError, decode_pcm16, parse_event, parse_object
from vita_audio.serve.guard import RateLimit
from vita_audio.serve.records import Record
from vita_audio.serve.reply import Reply, describe, error_json, item_json, new_id, submit_answer
from vita_audio.serve.scheduler import Answer
from vita_audio.serve.service import Service
from vita_audio.serve.transcription import Transcriber
from vita_audio.serve.turns import VAD_RATE, SpeechStarted, SpeechStopped, TurnDetector, load_vad

ASKING_SECONDS = 0.3  # clients ask for an answer within this time; answers come before transcriptions


@dataclass(frozen=True)
class EarlyAnswer:
    """An answer begun in a pause that may be the end of a turn: the silence that turn detection waits for is used.

    Attributes:
        end: Sample of the stream where the turn is cut.
    """

    end: int
    turn: Item
    record: Record
    answer: Answer


class RealtimeSession:
    """One connection with its conversation; everything it holds ends with `run`."""

    def __init__(self, service: Service, websocket: WebSocket, model: str):
        """Prepare a session with a model of the service, which an update may change."""
        self._service, self._websocket, self._id = service, websocket, new_id("sess")
        self._config = events.SessionConfig(model=model)
        self._voice: Any = None
        self._conversation = Conversation()
        self._detector: TurnDetector | None = None
        self._resampler: StreamResampler | None = None
        self._turn_id = new_id("item")  # of the user's next turn
        self._early: EarlyAnswer | None = None
        self._dropped: Answer | None = None  # the latest early answer that was dropped; the model may still be in it
        self._reply: Reply | None = None
        self._tasks: set[asyncio.Task] = set()
        self._answering: asyncio.Task | None = None
        self._active_at = perf_counter()
        self._buffer = torch.zeros(0)  # without turn detection
        self._transcriber = Transcriber(service, self._send, self._id)
        limits = service.limits
        self._event_rate = RateLimit(limits.events_per_second, 2 * limits.events_per_second)
        self._audio_rate = RateLimit(limits.audio_rate, limits.audio_rate + limits.max_audio_seconds)

    async def refuse(self, error: EventError) -> None:
        """Tell the client why it is not served, and close the connection."""
        with suppress(WebSocketDisconnect):
            await self._send_error(error)
            await self._websocket.close(1008, error.code)

    async def run(self) -> None:
        """Serve the client until it leaves, is idle for too long, or sends too much."""
        try:
            await self._configure(self._config)
            await self._send("session.created", session=self._session_json())
            await self._serve()
        except WebSocketDisconnect:
            pass
        finally:
            self._drop_early()
            await self._end_tasks()

    async def _end_tasks(self) -> None:
        if self._reply is not None:
            self._reply.cancel("client_left")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self) -> None:
        error, code = EventError("too many events per second", "rate_limit_exceeded"), 1008
        try:
            text = await self._receive()
            while self._event_rate.allows(1):
                await self._handle(text)
                text = await self._receive()
        except asyncio.TimeoutError:
            error, code = EventError("the session was idle for too long", "idle_timeout"), 1000
        await self._end_tasks()  # they must not send to a closed socket
        await self._send_error(error)
        await self._websocket.close(code)

    async def _receive(self) -> str | bytes:
        is_answering = self._answering is not None and not self._answering.done()
        since = perf_counter() if is_answering else self._active_at
        left = since + self._service.limits.idle_seconds - perf_counter()
        message = await asyncio.wait_for(self._websocket.receive(), max(left, 0))
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        return message["text"] if message.get("text") is not None else message.get("bytes", b"")

    async def _handle(self, text: str | bytes) -> None:
        """Carry out an event, or send an error about it."""
        event_id = None
        try:
            fields = parse_object(text)
            head = events.ClientEvent(type=fields["type"], event_id=fields.get("event_id"))
            event_id = head.event_id
            event = parse_event(head.type, fields)
            if not isinstance(event, events.Append):
                self._active_at = perf_counter()
                self._drop_early()  # the event may change what is answered
            await getattr(self, "_on_" + event.type.replace(".", "_"))(event)
        except ValidationError as error:
            first = error.errors()[0]
            param, message = describe(first, first["loc"])
            code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
            await self._send_error(EventError(message, code, param), event_id)
        except ValueError as error:
            await self._send_error(error, event_id)

    async def _send(self, kind: str, **fields: Any) -> None:
        if kind != "error":
            self._active_at = perf_counter()
        await self._websocket.send_json({"type": kind, "event_id": new_id("event"), **fields})

    async def _send_error(self, error: ValueError, event_id: str | None = None) -> None:
        fields = {"code": error.code, "param": error.param} if isinstance(error, EventError) else {}
        details = error_json(error, event_id=event_id, **fields)
        self._service.note_error(details["code"])
        await self._send("error", error=details)

    # session

    async def _on_session_update(self, event: events.SessionUpdate) -> None:
        config = self._config.updated(event.session)
        self._check_model(config.model, "session.model")
        transcription = config.audio.input.transcription
        if transcription is not None and transcription.model is not None:
            self._check_model(transcription.model, "session.audio.input.transcription.model")
        self._service.check_text(config.instructions)
        if config.generation.voice_prompt != self._config.generation.voice_prompt:
            self._voice = await self._make_voice(config.generation.voice_prompt)
        await self._configure(config)
        await self._send("session.updated", session=self._session_json())

    def _check_model(self, name: str | None, param: str) -> None:
        if name not in self._service.models:
            raise EventError(f"{self._service.model_rule}, got {name!r}", param=param)

    async def _configure(self, config: events.SessionConfig) -> None:
        old, new = self._config.audio.input, config.audio.input
        self._config = config
        if self._resampler is None or old.format != new.format:
            self._resampler = StreamResampler(new.format.rate, VAD_RATE)
        if new.turn_detection is None:
            self._detector = None
        elif self._detector is None or old.turn_detection != new.turn_detection:
            network = await asyncio.to_thread(load_vad)
            options = new.turn_detection.model_dump(include={"threshold", "prefix_padding_ms", "silence_duration_ms"})
            self._detector = TurnDetector(network, **options, max_seconds=self._service.limits.max_audio_seconds)
            self._buffer = torch.zeros(0)

    async def _make_voice(self, prompt: events.VoicePrompt | None) -> Any:
        if prompt is None:
            return None
        param = "session.generation.voice_prompt"
        wave = decode_pcm16(prompt.audio, f"{param}.audio")
        try:
            return await self._service.make_voice(wave, prompt.rate)
        except ValueError as error:
            raise EventError(str(error), "voice_not_usable", param) from error

    def _session_json(self) -> dict[str, Any]:
        fields = self._config.model_dump(exclude={"generation": {"voice_prompt": {"audio"}}})
        return {**fields, "id": self._id, "object": "realtime.session"}

    # audio in

    async def _on_input_audio_buffer_append(self, event: events.Append) -> None:
        wave = decode_pcm16(event.audio, "audio")
        if not self._audio_rate.allows(len(wave) / self._config.audio.input.format.rate):
            rate = f"{self._service.limits.audio_rate:g} s per second"
            raise EventError(f"audio may arrive at {rate} on average; this piece is left out", "rate_limit_exceeded")
        wave = self._resampler.push(wave)
        if self._detector is None:
            if len(self._buffer) + len(wave) > self._service.limits.max_audio_seconds * VAD_RATE:
                raise EventError(f"a turn has at most {self._service.limits.max_audio_seconds:g} s", "buffer_full")
            self._buffer = torch.cat([self._buffer, wave])
            return
        for found in await asyncio.to_thread(self._detector.push, wave):
            if isinstance(found, SpeechStarted):
                await self._start_turn(found)
            else:
                await self._stop_turn(found)
        self._follow_pause()

    def _follow_pause(self) -> None:
        """Begin to answer in a pause if nothing else is to do, and give up if the turn goes on."""
        end = self._detector.pause
        if self._early is not None and self._early.end != end:
            self._drop_early()
        is_answered = self._config.audio.input.turn_detection.create_response and self._reply is None
        if end is None or self._early is not None or not is_answered or not self._service.scheduler.is_idle:
            return
        turn, record = Item(self._turn_id, "user", audio=(self._detector.turn_until(end), VAD_RATE)), self._new_record()
        conversation = Conversation(self._with(turn), self._conversation.state)
        answer = submit_answer(self._service, conversation, self._config, record, self._voice, is_early=True)
        self._early = EarlyAnswer(end, turn, record, answer)

    def _drop_early(self) -> None:
        if self._early is not None:
            self._service.metrics.early_answers.labels("dropped").inc()
            self._early.answer.cancel()
            self._early, self._dropped = None, self._early.answer

    async def _start_turn(self, found: SpeechStarted) -> None:
        start_ms = found.start * 1000 // VAD_RATE
        await self._send("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=self._turn_id)
        if self._reply is not None and self._config.audio.input.turn_detection.interrupt_response:
            self._reply.cancel("turn_detected")

    async def _stop_turn(self, found: SpeechStopped) -> None:
        early = self._early
        if early is not None and early.end == found.end and early.answer.keep():
            turn, record, answer = early.turn, early.record, early.answer
            record.early = answer.seconds.total
        else:
            self._drop_early()
            turn, record, answer = Item(self._turn_id, "user", audio=(found.wave, VAD_RATE)), self._new_record(), None
        record.start, record.vad_seconds = perf_counter(), found.num_silent / VAD_RATE
        end_ms = found.end * 1000 // VAD_RATE
        await self._send("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=self._turn_id)
        await self._commit(turn)
        if self._config.audio.input.turn_detection.create_response:
            await self._respond(self._config, record, answer)

    def _new_record(self) -> Record:
        return Record("realtime", self._id)

    async def _on_input_audio_buffer_commit(self, event: events.ClientEvent) -> None:
        rest = self._resampler.flush()
        self._resampler = StreamResampler(self._config.audio.input.format.rate, VAD_RATE)
        wave = torch.cat([self._take_audio(), rest])
        if len(wave) < MIN_SECONDS * VAD_RATE:
            raise EventError(
                f"the buffer must have at least {MIN_SECONDS:g} s, got {len(wave) / VAD_RATE:.3f} s",
                "input_audio_buffer_commit_empty",
            )
        await self._commit(Item(self._turn_id, "user", audio=(wave, VAD_RATE)))

    def _take_audio(self) -> Tensor:
        wave, self._buffer = self._buffer, torch.zeros(0)
        return wave if self._detector is None else self._detector.end_turn()

    async def _on_input_audio_buffer_clear(self, event: events.ClientEvent) -> None:
        self._take_audio()
        await self._send("input_audio_buffer.cleared")

    async def _commit(self, turn: Item) -> None:
        previous, self._turn_id = self._conversation.last_id, new_id("item")
        await self._send("input_audio_buffer.committed", item_id=turn.id, previous_item_id=previous)
        await self._add(turn, previous)

    # conversation

    def _with(self, item: Item) -> list[Item]:
        """Return the items of the conversation when this one is added."""
        limits, items = self._service.limits, [*self._conversation.items, item]
        if sum(one.role == "system" for one in items) > limits.max_turns:
            raise EventError(f"a conversation has at most {limits.max_turns} messages of the system", param="item.role")
        return keep_latest(items, limits.max_turns, limits.max_conversation_seconds)

    async def _add(self, item: Item, previous: str | None) -> None:
        self._conversation.items = self._with(item)
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._send(kind, item=item_json(item), previous_item_id=previous)
        if item.audio is not None and self._config.audio.input.transcription is not None:
            model = self._config.audio.input.transcription.model or self._config.model
            await self._transcriber.add(item, model)
            self._start(self._transcribe())

    async def _transcribe(self) -> None:
        """Transcribe the turns that wait, unless an answer is in progress, which does so at its end."""
        await asyncio.sleep(ASKING_SECONDS)
        if self._reply is None:
            await self._transcriber.run()

    async def _on_conversation_item_create(self, event: events.ItemCreate) -> None:
        content, item = event.item.content[0], Item(event.item.id or new_id("item"), event.item.role)
        item.is_written = item.role != "system"
        if self._conversation.find(item.id):
            raise EventError(f"there is an item {item.id!r} already", param="item.id")
        if content.type == "input_text" and content.text and content.audio is None:
            self._service.check_text(content.text)
            item.text = plain_text(content.text, self._service.speech_lm.tokenizer)
        elif content.type == "input_audio" and content.audio and content.text is None and item.role == "user":
            rate, longest = self._config.audio.input.format.rate, self._service.limits.max_audio_seconds
            wave = decode_pcm16(content.audio, param := "item.content.0.audio")
            if not MIN_SECONDS <= len(wave) / rate <= longest:
                message = f"a turn has {MIN_SECONDS:g} to {longest:g} s, got {len(wave) / rate:.3f} s"
                raise EventError(message, param=param)
            item.audio = (wave, rate)
        else:
            raise EventError(
                "content must be an input_text with text, or a user's input_audio with audio", param="item"
            )
        await self._add(item, self._conversation.last_id)

    async def _on_conversation_item_truncate(self, event: events.Truncate) -> None:
        item = self._conversation.find(event.item_id)
        if item is None or item.role != "assistant":
            rule = "a conversation ends with its connection, and forgets its oldest messages"
            message = f"there is no answer with the id {event.item_id!r}; {rule}"
            raise EventError(message, "item_not_found", "item_id")
        if self._reply is not None and self._reply.item is item:
            self._reply.cancel("client_cancelled")
            await self._finish_reply()
        item.truncate(event.audio_end_ms / 1000, self._service.speech_lm)
        fields = event.model_dump(include={"item_id", "content_index", "audio_end_ms"})
        await self._send("conversation.item.truncated", **fields, transcript=item.text)

    # answers

    async def _on_response_create(self, event: events.ResponseCreate) -> None:
        if self._reply is not None and self._reply.is_active:
            raise EventError("there is a response already; cancel it first", "conversation_already_has_active_response")
        await self._finish_reply()  # one that was cancelled may still get a token
        items = [item for item in self._conversation.items if item.ids != []]  # not answers that nobody heard
        if not any(item.role == "user" for item in items):
            raise EventError("the conversation has no message of a user", "conversation_empty")
        if items[-1].role == "assistant":
            raise EventError("the latest message is an answer; add one of the user", "conversation_already_answered")
        modalities = event.response.output_modalities or self._config.output_modalities
        config = self._config.model_copy(update={"output_modalities": modalities})
        await self._respond(config, self._new_record())

    async def _on_response_cancel(self, event: events.ResponseCancel) -> None:
        if self._reply is None or self._reply.is_over or event.response_id not in (None, self._reply.id):
            raise EventError("there is no such response in progress", "response_cancel_not_active")
        self._reply.cancel("client_cancelled")

    async def _finish_reply(self) -> None:
        if self._answering is not None:
            await asyncio.wait([self._answering])

    async def _respond(self, config: events.SessionConfig, record: Record, answer: Answer | None = None) -> None:
        """Begin a response; `answer` and `record` may be those of the early answer."""
        if self._reply is not None:
            self._reply.cancel("turn_detected")
        await self._finish_reply()
        if answer is not None:
            self._early = None
            self._service.metrics.early_answers.labels("used").inc()
        elif self._dropped is not None:
            await self._dropped.close()
        self._reply = Reply(self._service, self._send, self._conversation, config, record, answer)
        self._answering = self._start(self._run_reply(self._reply))

    def _start(self, work: Awaitable[None]) -> asyncio.Task:
        async def until_client_leaves() -> None:
            with suppress(WebSocketDisconnect):
                await work

        task = asyncio.create_task(until_client_leaves())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_reply(self, reply: Reply) -> None:
        try:
            await reply.run(self._voice)
        finally:
            self._reply = None
        self._start(self._transcriber.run())

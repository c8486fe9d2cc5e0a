"""One response of a realtime session: runs an answer and sends its events."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from vita_audio.serve.audio import to_pcm16
from vita_audio.serve.conversation import Conversation, Item
from vita_audio.serve.events import SessionConfig
from vita_audio.serve.reading import ReadChunk
from vita_audio.serve.records import Record
from vita_audio.serve.scheduler import Answer, BusyError, GenerationError, Piece
from vita_audio.serve.service import Service

MAX_NAME = 200  # characters of a client's name for something

Send = Callable[..., Awaitable[None]]  # type of an event, its fields as keywords


def new_id(kind: str) -> str:
    return f"{kind}_{uuid4().hex[:24]}"


def printable(text: str) -> str:
    """Return a client's text, such as the name of a field, in a form that fits into an error."""
    return text[:MAX_NAME].encode("ascii", "backslashreplace").decode()


def describe(detail: Mapping[str, Any], place: Sequence[int | str]) -> tuple[str, str]:
    """Return the field at `place` and a message about it, for a detail of pydantic's `ValidationError`."""
    param = printable(".".join(map(str, place)))
    is_unknown = detail["type"] == "extra_forbidden"
    return param, f"{param}: {'not supported' if is_unknown else detail['msg'].removeprefix('Value error, ')}"


def item_json(item: Item, *, status: str = "completed", as_text: bool = False) -> dict[str, Any]:
    """Return an item as OpenAI's clients expect it, without its audio."""
    if item.role == "assistant":
        part = (
            {"type": "output_text", "text": item.text} if as_text else {"type": "output_audio", "transcript": item.text}
        )
    else:
        part = {"type": "input_audio"} if item.audio is not None else {"type": "input_text", "text": item.text}
    fields = {"id": item.id, "object": "realtime.item", "type": "message", "status": status}
    return {**fields, "role": item.role, "content": [part]}


def submit_answer(
    service: Service,
    conversation: Conversation,
    config: SessionConfig,
    record: Record,
    voice: Any,
    *,
    is_early: bool = False,
) -> Answer:
    """Queue the answer to a conversation as a session wants it.

    Args:
        voice: From `Service.make_voice`, or None.
        is_early: As in `Scheduler.submit`.
    Raises: BusyError.
    """
    return service.submit(
        conversation,
        record,
        model=config.model,
        instructions=config.instructions,
        max_new_tokens=None if config.max_output_tokens == "inf" else config.max_output_tokens,
        decode_audio=config.is_spoken,
        is_aloud=config.is_spoken,
        is_early=is_early,
        voice=voice,
        **config.generation.options,
    )


class Reply:
    """A response in progress; `item` is its answer, which is in the conversation."""

    def __init__(
        self,
        service: Service,
        send: Send,
        conversation: Conversation,
        config: SessionConfig,
        record: Record,
        answer: Answer | None = None,
    ):
        """Prepare a response; `answer` is its answer if that has begun, by `submit_answer` with the same record."""
        self.id, self.item = new_id("resp"), Item(new_id("item"), "assistant", ids=[])
        self._service, self._send, self._conversation, self._config = service, send, conversation, config
        self._as_text = not config.is_spoken
        self._record = record
        self._ids: list[int] = []  # of the answer, and of its text being read aloud
        self._answer = answer
        self._is_cancelled = False
        self.is_over = False  # the client may know before `run` returns

    @property
    def is_active(self) -> bool:
        """Whether it is neither over nor cancelled."""
        return not self.is_over and not self._is_cancelled

    def cancel(self, reason: str) -> None:
        """Stop within one decoding cycle; `run` then sends `response.done`."""
        if self.is_active:
            self._is_cancelled, self._record.reason = True, reason
        if self._answer is not None:
            self._answer.cancel()

    async def run(self, voice: Any) -> None:
        """Generate the answer and send all events of the response.

        Args:
            voice: From `Service.make_voice`, or None.
        """
        try:
            await self._send("response.created", response=self._json("in_progress"))
            if self._answer is None:
                self._answer = submit_answer(self._service, self._conversation, self._config, self._record, voice)
            if self._is_cancelled:
                self._answer.cancel()
            previous = self._conversation.last_id
            self._conversation.items.append(self.item)
            await self._stream(self._answer, previous)
            reasons = {"cancelled": self._record.reason, "incomplete": "max_output_tokens"}
            outcome = "cancelled" if self._is_cancelled else self._record.outcome
            details = {"type": outcome, **({"reason": reasons[outcome]} if outcome in reasons else {})}
        except (BusyError, GenerationError, ValueError) as error:
            details = {"type": "failed", "error": error_json(error)}
            self._service.note_error(details["error"]["code"])
        finally:
            if self._answer is not None:
                await self._answer.close()
        self.is_over = True
        await self._send("response.done", response=self._json(details["type"], details))

    async def _stream(self, answer: Answer, previous: str | None) -> None:
        kind, text_field = ("output_text", "text") if self._as_text else ("output_audio_transcript", "transcript")
        part_type = "text" if self._as_text else "audio"
        place = {"response_id": self.id, "output_index": 0}
        where = {**place, "item_id": self.item.id, "content_index": 0}
        item = item_json(self.item, status="in_progress", as_text=self._as_text) | {"content": []}
        await self._send("response.output_item.added", **place, item=item)
        await self._send("conversation.item.added", item=item, previous_item_id=previous)
        await self._send("response.content_part.added", **where, part={"type": part_type, text_field: ""})
        async with aclosing(self._service.pieces(answer, self._record)) as pieces:
            async for piece in pieces:
                if not isinstance(piece, Piece):
                    await self._send("vita.queue", response_id=self.id, place=piece.number)
                    continue
                self._ids += piece.chunk.ids
                if isinstance(piece.chunk, ReadChunk):
                    self.item.note_reading(piece.chunk.sentence, len(piece.chunk.codes))
                else:
                    self.item.ids += piece.chunk.ids
                self.item.text += piece.chunk.text
                if piece.chunk.text:
                    await self._send(f"response.{kind}.delta", **where, delta=piece.chunk.text)
                if len(piece.chunk.wave):
                    delta = base64.b64encode(to_pcm16(piece.chunk.wave)).decode()
                    await self._send("response.output_audio.delta", **where, delta=delta)
        if not self._as_text:
            await self._send("response.output_audio.done", **where)
        await self._send(f"response.{kind}.done", **where, **{text_field: self.item.text})
        await self._send("response.content_part.done", **where, part={"type": part_type, text_field: self.item.text})
        status = "incomplete" if self._is_cancelled else "completed"
        item = item_json(self.item, status=status, as_text=self._as_text)
        await self._send("response.output_item.done", **place, item=item)
        await self._send("conversation.item.done", item=item, previous_item_id=previous)

    def _json(self, status: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        output = [item_json(self.item, as_text=self._as_text)] if details and self.item.ids else []
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": output,
            "output_modalities": self._config.output_modalities,
            "metadata": self._record.metadata(self._service.sample_rate),
            "usage": usage(self._service, self._record, self._ids) if details else None,
        }


def usage(service: Service, record: Record, ids: list[int]) -> dict[str, Any]:
    """Count the tokens of a prompt and of its answer."""

    def details(num: int, num_audio: int) -> dict[str, int]:
        return {"audio_tokens": num_audio, "text_tokens": num - num_audio}

    num_audio = sum(map(service.speech_lm.tokenizer.is_audio, ids))
    return {
        "input_tokens": record.num_prompt,
        "output_tokens": len(ids),
        "total_tokens": record.num_prompt + len(ids),
        "input_token_details": details(record.num_prompt, record.num_prompt_audio),
        "output_token_details": details(len(ids), num_audio),
    }


def error_json(error: Exception, **fields: Any) -> dict[str, Any]:
    """Return an error for the client, as OpenAI's clients expect it."""
    kinds = {BusyError: ("server_error", "server_busy"), GenerationError: ("server_error", "generation_failed")}
    kind, code = kinds.get(type(error), ("invalid_request_error", "invalid_value"))
    return {"type": kind, "code": code, "message": str(error), "param": None, **fields}

"""Requests and answers of `/v1/chat/completions`; fields that are not here are refused."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, field_validator

from vita_audio.serve.audio import read_audio, to_pcm16, to_wav
from vita_audio.serve.conversation import Item, forget_oldest, plain_text
from vita_audio.serve.events import Name, Strict, sampling
from vita_audio.serve.records import Record
from vita_audio.serve.reply import error_json, new_id
from vita_audio.serve.scheduler import GenerationError, Piece
from vita_audio.serve.service import Service


class InputAudio(Strict):
    data: str
    format: Literal["wav", "mp3"]


class TextPart(Strict):
    type: Literal["text"]
    text: str = Field(min_length=1)


class AudioPart(Strict):
    """Speech of a user."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def _type_of(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


PART_TYPE = Discriminator(  # pydantic's own message repeats what the client sent
    _type_of, custom_error_type="part_type", custom_error_message="a part needs type, text or input_audio"
)
Part = Annotated[Annotated[TextPart, Tag("text")] | Annotated[AudioPart, Tag("input_audio")], PART_TYPE]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part] = Field(min_length=1)

    @field_validator("role")
    @classmethod
    def _developers_write_system_messages(cls, role: str) -> str:
        return "system" if role == "developer" else role

    @field_validator("content", mode="before")
    @classmethod
    def _text_is_a_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class OutputAudio(Strict):
    format: Literal["wav", "pcm16"]
    voice: Literal["default"] = "default"


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    model: Name
    messages: list[Message] = Field(min_length=1)
    modalities: list[Literal["text", "audio"]] = Field(["text"], min_length=1)
    audio: OutputAudio | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def speaks(self) -> bool:
        return "audio" in self.modalities

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `Service.submit`."""
        options = {"model": self.model, "max_new_tokens": self.max_completion_tokens, "decode_audio": self.speaks}
        options["is_aloud"] = self.speaks
        return {**options, **sampling(self.temperature)}


def items_of(body: ChatRequest, service: Service) -> list[Item]:
    """Return the messages of a request that a conversation keeps: those of the system, and the latest others.

    Raises: ValueError for a request that contradicts itself, or for audio that cannot be used.
    """
    if body.speaks != (body.audio is not None):
        raise ValueError('modalities ["text", "audio"] and audio go together, got one of them')
    if body.stream and body.speaks and body.audio.format != "pcm16":
        raise ValueError(f"streamed audio is pcm16, got the format {body.audio.format!r}")
    if body.messages[-1].role != "user":
        raise ValueError(f"the last message must be a user's, got one of {body.messages[-1].role!r}")
    limits, items, seconds = service.limits, [], 0.0
    num_system = sum(message.role == "system" for message in body.messages)
    if num_system > limits.max_turns:
        raise ValueError(f"a request has at most {limits.max_turns} messages of the system, got {num_system}")
    for message in forget_oldest(body.messages, limits.max_turns):
        items.append(_item(message, service))
        if isinstance(items[-1].audio, tuple):
            wave, rate = items[-1].audio
            seconds += wave.shape[1] / rate
        if seconds > limits.max_audio_seconds:
            raise ValueError(f"the audio of a request must be at most {limits.max_audio_seconds:g} s long in all")
    return items


def _item(message: Message, service: Service) -> Item:
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    audios = [part.input_audio for part in message.content if isinstance(part, AudioPart)]
    if len(audios) > 1 or (audios and message.role != "user"):
        raise ValueError("a user's message may have one input_audio, others none")
    if audios and isinstance(message.content[-1], TextPart):
        raise ValueError("the text of a message must stand before its input_audio, as the model reads it")
    text = "\n".join(texts)
    service.check_text(text)
    item = Item("", message.role, plain_text(text, service.speech_lm.tokenizer), is_written=message.role != "system")
    if audios:
        try:
            data = base64.b64decode(audios[0].data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"input_audio.data must be base64: {error}") from error
        item.text += "\n" if item.text else ""
        item.audio = read_audio(data, service.limits.max_audio_seconds)
    return item


def _usage(record: Record) -> dict[str, int]:
    num_prompt, num_answer = record.num_prompt, len(record.depths)
    return {"prompt_tokens": num_prompt, "completion_tokens": num_answer, "total_tokens": num_prompt + num_answer}


def _finish(record: Record) -> str:
    return "length" if record.outcome == "incomplete" else "stop"


async def complete(body: ChatRequest, record: Record, pieces: AsyncIterator[Any]) -> dict[str, Any]:
    """Return the completion of a request that is not streamed."""
    chunks = [piece.chunk async for piece in pieces if isinstance(piece, Piece)]
    text = "".join(chunk.text for chunk in chunks).strip()
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if body.speaks:
        wave = torch.cat([chunk.wave for chunk in chunks])
        data = to_wav(wave) if body.audio.format == "wav" else to_pcm16(wave)
        audio = {"id": new_id("audio"), "data": base64.b64encode(data).decode(), "transcript": text, "expires_at": 0}
        message |= {"content": None, "audio": audio}
    choice = {"index": 0, "message": message, "finish_reason": _finish(record), "logprobs": None}
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [choice],
        "usage": _usage(record),
    }


async def stream_events(
    body: ChatRequest, service: Service, record: Record, pieces: AsyncIterator[Any]
) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed completion."""
    head = {"id": new_id("chatcmpl"), "object": "chat.completion.chunk", "created": int(time.time())}
    audio_id = new_id("audio")

    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _sse({**head, "model": body.model, "choices": [choice]})

    yield event({"role": "assistant"})
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if not isinstance(piece, Piece):
                    continue
                if piece.chunk.text:
                    words = {"audio": {"id": audio_id, "transcript": piece.chunk.text}}
                    yield event(words if body.speaks else {"content": piece.chunk.text})
                if len(piece.chunk.wave):
                    data = base64.b64encode(to_pcm16(piece.chunk.wave)).decode()
                    yield event({"audio": {"id": audio_id, "data": data}})
    except GenerationError as error:  # the status has been sent
        service.note_error("generation_failed")
        yield _sse({"error": error_json(error)})
        return
    yield event({}, _finish(record))
    if body.stream_options and body.stream_options.include_usage:
        yield _sse({**head, "model": body.model, "choices": [], "usage": _usage(record)})
    yield "data: [DONE]\n\n"


def _sse(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"

"""Speak texts sentence by sentence, since models are trained on single ones and the length of an answer is limited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from vita_audio.serve.conversation import Conversation, Item, as_read
from vita_audio.serve.reading import sentences
from vita_audio.serve.records import Record
from vita_audio.serve.scheduler import GenerationError, Piece, Place
from vita_audio.serve.service import Service
from vita_audio.text import TTS_PROMPT


class IncompleteError(RuntimeError):
    """The model did not finish a text within `max_new_tokens`."""


async def speak(service: Service, text: str, model: str | None = None) -> AsyncIterator[Place | Piece]:
    """Yield the pieces of a text's speech; `model` as in `Service.submit`.

    Raises: BusyError, GenerationError; IncompleteError after the pieces of an answer that the model did not end.
    """
    name, longest = model or service.name, service.limits.max_new_tokens
    speech_lm, bare = service.models[name], service.demo(name).bare_words
    for number, part in enumerate(await asyncio.to_thread(sentences, text, speech_lm, longest, bare=bare)):
        record = Record("speech")
        words = as_read(part, speech_lm.tokenizer, bare=bare)
        conversation = Conversation([Item("", "user", TTS_PROMPT + words)])
        answer = service.submit(conversation, record, model=model, is_continued=number > 0)
        async with aclosing(service.pieces(answer, record)) as pieces:
            async for piece in pieces:
                yield piece
        if record.outcome == "incomplete":
            raise IncompleteError(f"the model did not end within {longest} tokens")
        if record.outcome != "completed":
            raise GenerationError("the server is shutting down")

"""Speak texts sentence by sentence, since models are trained on single ones and the length of an answer is limited."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

from vita_audio.serve.conversation import Conversation, Item, plain_text
from vita_audio.serve.records import Record
from vita_audio.serve.scheduler import GenerationError, Piece, Place
from vita_audio.serve.service import Service
from vita_audio.text import TTS_PROMPT

SECONDS_PER_TOKEN = 0.5  # of text, spoken slowly
# Not after an abbreviation, as in "Dr. Smith" and "No. 4".
NOT_ABBREVIATED = r"(?<!\b(?:Dr|Mr|Ms|St)\.\s)(?<!\bMrs\.\s)(?!(?<=\bNo\.\s)\d)"
SENTENCE_END = rf"(?<=[.!?]\s){NOT_ABBREVIATED}|(?<=[。！？\n])"
BREAKS = (r"(?<=[,;:]\s)|(?<=[，、；：])", r"(?<=\s)", "")  # after clauses, words, characters


class IncompleteError(RuntimeError):
    """The model did not finish a text within `max_new_tokens`."""


def has_words(text: str) -> bool:
    """Return whether there is anything to speak: a letter or a digit."""
    return any(map(str.isalnum, text))


def split_text(text: str, size: Callable[[str], float], max_size: float) -> list[str]:
    """Cut a text after each sentence, and one that is larger than `max_size` also after clauses, words or characters.

    Args:
        size: Size of a part.
    Returns: The parts with words, without the whitespace around them; only a single character may be larger.
    """
    parts = [part for sentence in re.split(SENTENCE_END, text) for part in _cut(sentence, size, max_size, BREAKS)]
    return [part.strip() for part in parts if has_words(part)]


def _cut(text: str, size: Callable[[str], float], max_size: float, breaks: Sequence[str]) -> list[str]:
    if size(text) <= max_size or not breaks:
        return [text]
    parts: list[str] = []
    for piece in re.split(breaks[0], text):
        if parts and size(parts[-1] + piece) <= max_size:
            parts[-1] += piece
        else:
            parts += _cut(piece, size, max_size, breaks[1:])
    return parts


async def speak(service: Service, text: str, model: str | None = None) -> AsyncIterator[Place | Piece]:
    """Yield the pieces of a text's speech; `model` as in `Service.submit`.

    Raises: BusyError, GenerationError; IncompleteError after the pieces of an answer that the model did not end.
    """
    speech_lm, longest = service.models[model or service.name], service.limits.max_new_tokens
    num_per_token = 1 + SECONDS_PER_TOKEN * speech_lm.audio_tokenizer.frame_rate  # tokens of the answer

    def num_tokens(part: str) -> float:
        return num_per_token * len(speech_lm.tokenizer.encode(part))

    parts = await asyncio.to_thread(split_text, plain_text(text, speech_lm.tokenizer), num_tokens, longest)
    for number, part in enumerate(parts):
        record = Record("speech")
        conversation = Conversation([Item("", "user", TTS_PROMPT + part)])
        answer = service.submit(conversation, record, model=model, is_continued=number > 0)
        async with aclosing(service.pieces(answer, record)) as pieces:
            async for piece in pieces:
                yield piece
        if record.outcome == "incomplete":
            raise IncompleteError(f"the model did not end within {longest} tokens")
        if record.outcome != "completed":
            raise GenerationError("the server is shutting down")

"""Recognise speech: of files, and of the turns of a realtime session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from torch import Tensor

from vita_audio.inference.pipeline import GREEDY
from vita_audio.serve.conversation import Conversation, Item, keep_latest
from vita_audio.serve.records import Record
from vita_audio.serve.reply import error_json
from vita_audio.serve.scheduler import BusyError, GenerationError, Piece
from vita_audio.serve.service import Service
from vita_audio.text import ASR_PROMPT

KIND = "conversation.item.input_audio_transcription"


async def transcribe(
    service: Service,
    audio: tuple[Tensor, int] | list[int],
    record: Record,
    *,
    model: str | None = None,
    is_background: bool = False,
) -> str:
    """Return the words of an audio, in a conversation of its own.

    Args:
        audio: A wave and its rate, or codes.
        model: As in `Service.submit`.
        is_background: Answers go first.
    Raises: BusyError, GenerationError; ValueError for audio that cannot be used.
    """
    conversation = Conversation([Item("", "user", f"{ASR_PROMPT}\n", audio)])
    options = {"model": model, "plan": "vanilla", "decode_audio": False, "is_background": is_background, **GREEDY}
    answer = service.submit(conversation, record, **options)
    async with aclosing(service.pieces(answer, record)) as pieces:
        return "".join([piece.chunk.text async for piece in pieces if isinstance(piece, Piece)]).strip()


class Transcriber:
    """Sends the words of the turns of a session, each turn once, one after another."""

    def __init__(self, service: Service, send: Callable[..., Awaitable[None]], session: str):
        self._service, self._send, self._session = service, send, session
        self._waiting: list[tuple[Item, str | None]] = []  # turns, and the names of their models
        self._is_running = False

    async def add(self, turn: Item, model: str | None) -> None:
        """Let the next `run` transcribe a user's turn; of those that wait, as many are kept as of a conversation.

        Args:
            model: Name of the model that transcribes it.
        """
        limits, waiting = self._service.limits, [*self._waiting, (turn, model)]
        kept = keep_latest([turn for turn, _ in waiting], limits.max_turns, limits.max_conversation_seconds)
        num_dropped = len(waiting) - len(kept)
        self._waiting = waiting[num_dropped:]
        for dropped, _ in waiting[:num_dropped]:
            await self._fail(dropped, BusyError("too many turns of the conversation wait to be transcribed"))

    async def run(self) -> None:
        """Transcribe all turns that wait, unless a call is doing so."""
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._waiting:
                await self._run(*self._waiting.pop(0))
        finally:
            self._is_running = False

    async def _run(self, turn: Item, model: str | None) -> None:
        record = Record("realtime_transcription", self._session)
        try:
            text = await transcribe(self._service, turn.audio, record, model=model, is_background=True)
        except (BusyError, GenerationError, ValueError) as error:
            return await self._fail(turn, error)
        num_prompt, num_answer = record.num_prompt, len(record.depths)
        usage = {"type": "tokens", "input_tokens": num_prompt, "output_tokens": num_answer}
        usage["total_tokens"] = num_prompt + num_answer
        await self._send(f"{KIND}.completed", item_id=turn.id, content_index=0, transcript=text, usage=usage)

    async def _fail(self, turn: Item, error: Exception) -> None:
        details = error_json(error)
        self._service.note_error(details["code"])
        await self._send(f"{KIND}.failed", item_id=turn.id, content_index=0, error=details)

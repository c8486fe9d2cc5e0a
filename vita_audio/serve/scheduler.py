"""Many answers from one model: a thread that takes turns between streams, and a queue for those that wait."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from copy import copy
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from vita_audio.audio_tokenizers import AudioTokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.response import Chunk

OpenStream = Callable[[SpeechLM], Iterator[Chunk]]


log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """The queue is full."""


class GenerationError(RuntimeError):
    """The model failed for a reason that is not the client's; the log has it."""


@dataclass
class Seconds:
    """Time spent on an answer so far.

    Attributes:
        encoder: Reading the conversation: speech tokenizer or features.
        model: Language model.
        decoder: Codes to sound.
    """

    encoder: float = 0.0
    model: float = 0.0
    decoder: float = 0.0

    @property
    def total(self) -> float:
        return self.encoder + self.model + self.decoder


@dataclass(frozen=True)
class Piece:
    """The next chunk of an answer, and the time spent on the answer up to its end."""

    chunk: Chunk
    seconds: Seconds


@dataclass(frozen=True)
class Place:
    """Place of an answer in the queue, from 1."""

    number: int


class _TimedCodec:
    """An audio tokenizer whose streams add up the time that decoding takes."""

    def __init__(self, codec: AudioTokenizer):
        self._codec, self.seconds = codec, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def stream(self, voice: Any = None) -> _TimedStream:
        return _TimedStream(self, self._codec.stream(voice))


class _TimedStream:
    def __init__(self, codec: _TimedCodec, stream: Any):
        self._codec, self._stream = codec, stream

    def push(self, codes: list[int]) -> Tensor:
        return self._timed(lambda: self._stream.push(codes))

    def flush(self) -> Tensor:
        return self._timed(self._stream.flush)

    def _timed(self, decode: Callable[[], Tensor]) -> Tensor:
        start = perf_counter()
        try:
            return decode()
        finally:
            self._codec.seconds += perf_counter() - start


class Answer:
    """An answer on its way, for one consumer in the event loop: `async for` yields each `Place` and `Piece`."""

    def __init__(self, open_stream: OpenStream):
        self.open_stream, self.stream = open_stream, None
        self.seconds, self.is_cancelled = Seconds(), False
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue()
        self._is_over, self._place = asyncio.Event(), 0

    def cancel(self) -> None:
        """Stop before the next step; the iteration then ends."""
        self.is_cancelled = True

    async def close(self) -> None:
        """Stop, and wait until the model has left the answer, so that its state may be used again."""
        self.cancel()
        await self._is_over.wait()

    def tell_place(self, number: int) -> None:
        """Tell the consumer the place in the queue, if it has changed; 0 or less is no place."""
        if 0 < number != self._place:
            self._place = number
            self.post(Place(number))

    def post(self, event: Place | Piece | Exception | None) -> None:
        """Hand something to the consumer; None ends the iteration. Called by the scheduler's thread."""
        try:
            self._loop.call_soon_threadsafe(self._receive, event)
        except RuntimeError:  # the loop has ended
            self.is_cancelled = True

    def _receive(self, event: Place | Piece | Exception | None) -> None:
        if not isinstance(event, Place | Piece):
            self._is_over.set()
        self._events.put_nowait(event)

    async def __aiter__(self) -> AsyncIterator[Place | Piece]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


class Scheduler:
    """Runs answers in one thread, at most `max_streams` at a time, one decoding step of each in turn."""

    def __init__(self, speech_lm: SpeechLM, max_streams: int, max_queue: int):
        self._speech_lm = copy(speech_lm)
        self._codec = self._speech_lm.audio_tokenizer = _TimedCodec(speech_lm.audio_tokenizer)
        self._max_streams, self._max_queue = max_streams, max_queue
        self._waiting: deque[Answer] = deque()
        self._active: deque[Answer] = deque()
        self._changed, self._is_closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, open_stream: OpenStream) -> Answer:
        """Queue an answer; `open_stream` is called in the scheduler's thread and starts it.

        Raises: BusyError if the queue is full.
        """
        with self._changed:
            place = len(self._active) + len(self._waiting) + 1 - self._max_streams
            if place > self._max_queue or self._is_closed:
                raise BusyError(f"the server is busy, {len(self._waiting)} answers are waiting; try again later")
            answer = Answer(open_stream)
            self._waiting.append(answer)
            answer.tell_place(place)
            self._changed.notify()
        return answer

    def close(self) -> None:
        """End all answers and the thread."""
        with self._changed:
            self._is_closed = True
            for answer in (*self._active, *self._waiting):
                answer.cancel()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._active or self._waiting or self._is_closed)
                self._admit()
                if not self._active:
                    if self._is_closed:
                        return
                    continue
                answer = self._active[0]
            has_more = self._step(answer)
            with self._changed:
                self._active.popleft()
                if has_more:
                    self._active.append(answer)

    def _admit(self) -> None:
        """Let waiting answers begin where there is room, drop those that were cancelled, and tell the rest."""
        num_waiting = len(self._waiting)
        for answer in [answer for answer in self._waiting if answer.is_cancelled]:
            self._waiting.remove(answer)
            answer.post(None)
        while self._waiting and len(self._active) < self._max_streams:
            self._active.append(self._waiting.popleft())
        if len(self._waiting) < num_waiting:
            for number, answer in enumerate(self._waiting, 1):
                answer.tell_place(number)

    def _step(self, answer: Answer) -> bool:
        """Take one step of an answer: read its prompt, or make its next chunk. Returns whether more will follow."""
        start, decoded = perf_counter(), self._codec.seconds
        try:
            if answer.is_cancelled:
                if answer.stream is not None:
                    answer.stream.close()
                chunk = None
            elif answer.stream is None:
                answer.stream = answer.open_stream(self._speech_lm)
                answer.seconds.encoder += perf_counter() - start
                return True
            else:
                chunk = next(answer.stream, None)
        except ValueError as error:
            answer.post(error)
            return False
        except Exception:  # belongs to this answer, not to the others
            log.exception("an answer failed")
            answer.post(GenerationError("the model failed; the log of the server has the reason"))
            return False
        if chunk is None:
            answer.post(None)
            return False
        in_decoder = self._codec.seconds - decoded
        answer.seconds.decoder += in_decoder
        answer.seconds.model += perf_counter() - start - in_decoder
        answer.post(Piece(chunk, copy(answer.seconds)))
        return True

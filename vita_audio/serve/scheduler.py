"""Many answers from one model: a thread that takes a step of the most urgent one, and a queue for those that wait.

A client hears an answer more slowly than the model makes it, so answers with sound in store can wait. The one that a
client needs next is the one whose sound ends first; one that has no sound yet is needed since its latest step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from vita_audio.inference.response import Chunk
from vita_audio.stopwatch import Stopwatch

MARGIN_SECONDS = 0.5  # of sound that a client has left when its answer becomes urgent; longer than a step of another
BACKGROUND_SECONDS = 1.0  # that a step of a background answer waits for those of others

log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """The queue is full."""


class GenerationError(RuntimeError):
    """The model failed for a reason that is not the client's; the log has it."""


class CancelledInStep(Exception):
    """An answer was cancelled while its step ran."""


@dataclass(frozen=True)
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

    @classmethod
    def of(cls, stopwatch: Stopwatch) -> Seconds:
        """Return what the stopwatch of `SpeechLM.stream` has measured so far."""
        seconds = stopwatch.seconds.get
        return cls(
            seconds("prompt", 0.0), seconds("language_model", 0.0), seconds("flow", 0.0) + seconds("vocoder", 0.0)
        )

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


class Answer:
    """An answer on its way, for one consumer in the event loop: `async for` yields each `Place` and `Piece`.

    Attributes:
        due: Time of `perf_counter` when its next step is needed.
        is_early: Nobody has asked for it yet, so the next one that is submitted cancels it.
    """

    def __init__(self, open_stream: OpenStream, *, is_background: bool, is_early: bool):
        self.open_stream, self.stream = open_stream, None
        self.stopwatch, self.is_cancelled, self.is_early = Stopwatch(), False, is_early
        self._delay = BACKGROUND_SECONDS if is_background else 0.0
        self._sound_ends = 0.0  # when a client that plays the sound at once has heard all of it
        self.due = perf_counter() + self._delay
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue()
        self._is_over, self._place = asyncio.Event(), 0

    @property
    def seconds(self) -> Seconds:
        """Time spent on it so far."""
        return Seconds.of(self.stopwatch)

    def cancel(self) -> None:
        """Stop before the next step, or inside a step that asks; the iteration then ends."""
        self.is_cancelled = True

    def raise_if_cancelled(self) -> None:
        """Let a step that takes long end. Raises: CancelledInStep."""
        if self.is_cancelled:
            raise CancelledInStep

    def stop_if_cancelled(self, ids: Tensor, scores: Tensor | None = None, **_) -> Tensor:
        """Be a stopping criterion of `generate` that never ends an answer, but raises CancelledInStep.

        A step may be many decoding cycles, since it lasts until there is something to hand on.
        """
        self.raise_if_cancelled()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def note_step(self, num_seconds: float) -> None:
        """Decide when the next step is due, after one that made this much sound."""
        now = perf_counter()
        if num_seconds:
            self._sound_ends = max(self._sound_ends, now) + num_seconds
        self.due = max(self._sound_ends - MARGIN_SECONDS, now) + self._delay

    def keep(self) -> bool:
        """Let an early answer be one that is asked for; returns whether it has not been cancelled before."""
        self.is_early = False
        return not self.is_cancelled

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


OpenStream = Callable[[Answer], Iterator[Chunk]]


class Scheduler:
    """Runs answers in one thread, at most `max_streams` at a time, always the next step of the most urgent one."""

    def __init__(self, max_streams: int, max_queue: int, sample_rate: int):
        """Start the thread; `sample_rate` is the one of the answers' sound, Hz."""
        self._max_streams, self._max_queue, self._sample_rate = max_streams, max_queue, sample_rate
        self._waiting: deque[Answer] = deque()
        self._active: list[Answer] = []
        self._changed, self._is_closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not self._active and not self._waiting

    def submit(
        self,
        open_stream: OpenStream,
        *,
        is_background: bool = False,
        is_continued: bool = False,
        is_early: bool = False,
    ) -> Answer:
        """Queue an answer.

        Args:
            open_stream: Called in the scheduler's thread with the answer; each `next` of its result is one step.
            is_background: Nobody waits for it, so others go first.
            is_continued: It continues an answer that has ended, so it is queued even if the queue is full.
            is_early: It may be asked for soon; until `Answer.keep` is called, others cancel it.
        Raises: BusyError if the queue is full.
        """
        with self._changed:
            answers = [*self._active, *self._waiting]
            for other in answers:
                if other.is_early:
                    other.cancel()
            place = sum(not other.is_cancelled for other in answers) + 1 - self._max_streams
            if (place > self._max_queue and not is_continued) or self._is_closed:
                raise BusyError(f"the server is busy, {len(self._waiting)} answers are waiting; try again later")
            answer = Answer(open_stream, is_background=is_background, is_early=is_early)
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
                answer = min(self._active, key=lambda answer: (not answer.is_cancelled, answer.due))
            if not self._step(answer):
                with self._changed:
                    self._active.remove(answer)

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
        try:
            if answer.is_cancelled:
                if answer.stream is not None:
                    answer.stream.close()
                chunk = None
            elif answer.stream is None:
                answer.stream = answer.open_stream(answer)
                answer.note_step(0)
                return True
            else:
                chunk = next(answer.stream, None)
        except CancelledInStep:
            chunk = None
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
        answer.note_step(len(chunk.wave) / self._sample_rate)
        answer.post(Piece(chunk, answer.seconds))
        return True

"""What all endpoints share: the model, its scheduler, the limits and the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.response import Chunk
from vita_audio.serve.audio import OUTPUT_RATE, StreamResampler
from vita_audio.serve.conversation import Conversation, make_sample, plain_text
from vita_audio.serve.metrics import Metrics
from vita_audio.serve.scheduler import Answer, Piece, Place, Scheduler
from vita_audio.serve.settings import Limits
from vita_audio.stopwatch import Stopwatch


class Service:
    """A model that answers the requests of many clients."""

    def __init__(self, speech_lm: SpeechLM, name: str, limits: Limits | None = None):
        """Start the scheduler; `name` is the name of the model for clients."""
        self.speech_lm, self.name, self.limits = speech_lm, name, limits or Limits()
        self.scheduler = Scheduler(self.limits.max_streams, self.limits.max_queue)
        self.metrics = Metrics(self.scheduler)
        self.num_sessions = 0

    def answer_limit(self, max_new_tokens: int | None) -> int:
        """Return the longest answer, in tokens, to a request for this length; None is no wish."""
        return min(max_new_tokens or self.limits.max_new_tokens, self.limits.max_new_tokens)

    def check_text(self, text: str) -> None:
        """Check the length of a client's text. Raises: ValueError."""
        if len(text) > self.limits.max_text:
            raise ValueError(f"text must have at most {self.limits.max_text} characters, got {len(text)}")

    def submit(
        self,
        conversation: Conversation,
        instructions: str = "",
        *,
        plan: str | None = None,
        max_new_tokens: int | None = None,
        **generation: Any,
    ) -> Answer:
        """Queue the answer to a conversation, whose state it updates; `close` the answer before the next one.

        Raises: BusyError.
        """
        limit = self.answer_limit(max_new_tokens)
        instructions = plain_text(instructions, self.speech_lm.tokenizer)
        items = list(conversation.items)

        def open_stream(stopwatch: Stopwatch) -> Iterator[Chunk]:
            with stopwatch.measure("prompt"):
                sample = make_sample(items, instructions, self.speech_lm, limit)
            options = {"state": conversation.state, "stopwatch": stopwatch, "max_new_tokens": limit, **generation}
            return self.speech_lm.stream(sample, plan, **options)

        return self.scheduler.submit(open_stream)

    async def pieces(self, answer: Answer) -> AsyncIterator[Place | Piece]:
        """Yield the pieces of an answer, with waves at OUTPUT_RATE, and count it; its end closes the answer."""
        start, num_samples, outcome = perf_counter(), 0, "failed"
        resampler = StreamResampler(self.speech_lm.audio_tokenizer.output_rate, OUTPUT_RATE)
        try:
            async for event in answer:
                if isinstance(event, Piece) and len(event.chunk.wave):
                    if not num_samples:
                        self.metrics.first_audio.observe(perf_counter() - start)
                    num_samples += len(event.chunk.wave)
                    chunk = replace(event.chunk, wave=resampler.push(event.chunk.wave))
                    event = Piece(chunk, event.seconds)
                yield event
            if not answer.is_cancelled:
                yield Piece(Chunk(wave=resampler.flush()), answer.seconds)
            outcome = "cancelled" if answer.is_cancelled else "completed"
            if num_samples and outcome == "completed":
                seconds = num_samples / self.speech_lm.audio_tokenizer.output_rate
                self.metrics.real_time_factor.observe(answer.seconds.total / seconds)
        except (GeneratorExit, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        finally:
            self.metrics.answers.labels(outcome).inc()
            answer.cancel()

"""What all endpoints share: the model, its scheduler, the limits, the metrics and the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.response import Chunk
from vita_audio.serve.audio import OUTPUT_RATE, StreamResampler
from vita_audio.serve.conversation import Conversation, forget_oldest, make_sample, plain_text
from vita_audio.serve.demo import Demo
from vita_audio.serve.guard import ClientLimit
from vita_audio.serve.metrics import Metrics
from vita_audio.serve.reading import read_aloud
from vita_audio.serve.records import Record, log_event
from vita_audio.serve.scheduler import Answer, BusyError, Piece, Place, Scheduler
from vita_audio.serve.settings import Limits

MIN_VOICE_SECONDS = 0.5


class Service:
    """A model, or several that share a base, which answer the requests of many clients.

    Attributes:
        models: The models by name; `speech_lm` is the first, `name` its name. A client that names no model gets it.
        demos: What is known about models, by name.
        sessions: The realtime sessions that are open.
    """

    def __init__(
        self,
        models: Mapping[str, SpeechLM],
        limits: Limits | None = None,
        *,
        demos: Mapping[str, Demo] | None = None,
        log_content: bool = False,
    ):
        """Start the scheduler.

        Args:
            models: By their names for clients, with one audio tokenizer.
            demos: By the same names; a model may lack one.
            log_content: Texts of questions and answers go into the log.
        Raises: ValueError for models whose text tokenizers differ, since a conversation may change its model.
        """
        self.models, self.limits, self.demos = dict(models), limits or Limits(), dict(demos or {})
        self.name, self.speech_lm = next(iter(models.items()))
        for name, speech_lm in models.items():
            if speech_lm.tokenizer.fingerprint != self.speech_lm.tokenizer.fingerprint:
                raise ValueError(f"the models of a server need the same text tokenizer; {self.name} and {name} differ")
        self.sample_rate = self.speech_lm.audio_tokenizer.output_rate
        self.sessions = ClientLimit(self.limits.max_sessions, self.limits.max_per_address)
        self.scheduler = Scheduler(self.limits.max_streams, self.limits.max_queue, self.sample_rate)
        self.metrics = Metrics(self.scheduler, lambda: self.num_sessions)
        self._log_content = log_content
        self._making_voice = asyncio.Lock()

    @property
    def num_sessions(self) -> int:
        return self.sessions.num_taken

    @property
    def model_rule(self) -> str:
        """Which models there are, for errors."""
        return f"model must be one of {', '.join(map(repr, self.models))}"

    def demo(self, model: str) -> Demo:
        """Return what is known about a model."""
        return self.demos.get(model, Demo())

    def check_text(self, text: str) -> None:
        """Check the length of a client's text. Raises: ValueError."""
        if len(text) > self.limits.max_text:
            raise ValueError(f"text must have at most {self.limits.max_text} characters, got {len(text)}")

    async def make_voice(self, wave: Tensor, rate: int) -> Any:
        """Return the voice of a recording, (samples,) at `rate` Hz; one at a time, outside the event loop.

        Raises: ValueError for a recording that is too short or too long, or if the codec has no voices.
        """
        seconds, longest = len(wave) / rate, self.limits.max_voice_seconds
        if not MIN_VOICE_SECONDS <= seconds <= longest:
            raise ValueError(f"a voice prompt has {MIN_VOICE_SECONDS:g} to {longest:g} s, got {seconds:.2f} s")
        async with self._making_voice:
            return await asyncio.to_thread(self.speech_lm.audio_tokenizer.make_voice, wave, rate)

    def submit(
        self,
        conversation: Conversation,
        record: Record,
        *,
        model: str | None = None,
        instructions: str = "",
        plan: str | None = None,
        max_new_tokens: int | None = None,
        is_background: bool = False,
        is_continued: bool = False,
        is_early: bool = False,
        is_aloud: bool = False,
        **generation: Any,
    ) -> Answer:
        """Queue the answer to a conversation, whose state it updates; `close` the answer before the next one.

        Args:
            record: Gets the outcome if there is no answer; otherwise give it to `pieces`.
            model: Name of the model that answers, by default the first one. The state of a conversation is read again
                where the one before it had another model.
            is_background, is_continued, is_early: As in `Scheduler.submit`.
            is_aloud: An answer in text alone is read aloud.
        Raises: BusyError.
        """
        record.model, record.is_continued = model or self.name, is_continued
        speech_lm, demo = self.models[record.model], self.demo(record.model)
        bare = demo.bare_words
        limit = record.limit = min(max_new_tokens or self.limits.max_new_tokens, self.limits.max_new_tokens)
        instructions = plain_text(instructions, speech_lm.tokenizer)
        items = forget_oldest(conversation.items, demo.max_turns or len(conversation.items))
        record.question = next((item.text for item in reversed(items) if item.role == "user"), "")

        def open_stream(answer: Answer) -> Iterator[Chunk]:
            with answer.stopwatch.measure("prompt"):
                read = {"bare": bare, "before_reading": answer.raise_if_cancelled}
                sample = make_sample(items, instructions, speech_lm, limit, **read)
            options = {"plan": plan, "stopwatch": answer.stopwatch, **generation}
            options["stopping_criteria"] = [answer.stop_if_cancelled]
            stream = speech_lm.stream(sample, state=conversation.state, max_new_tokens=limit, **options)
            record.count_prompt(conversation.prompt, speech_lm.tokenizer)
            return read_aloud(stream, speech_lm, limit, bare=bare, **options) if is_aloud else stream

        try:
            return self.scheduler.submit(
                open_stream, is_background=is_background, is_continued=is_continued, is_early=is_early
            )
        except BusyError:
            record.reason = "server_busy"
            self._finish(record)
            raise

    async def pieces(self, answer: Answer, record: Record) -> AsyncIterator[Place | Piece]:
        """Yield the pieces of an answer, with waves at OUTPUT_RATE, and record it; its end closes the answer."""
        resampler = StreamResampler(self.sample_rate, OUTPUT_RATE)
        try:
            async for event in answer:
                if isinstance(event, Piece):
                    was_silent = not record.num_samples
                    record.add(event)
                    if was_silent and record.num_samples and not record.is_continued:
                        self.metrics.first_audio.observe(record.first_sound["first_sound"])
                    if len(event.chunk.wave):
                        event = Piece(replace(event.chunk, wave=resampler.push(event.chunk.wave)), event.seconds)
                yield event
            if not answer.is_cancelled:
                yield Piece(Chunk(wave=resampler.flush()), answer.seconds)
            if answer.is_cancelled:
                record.outcome = "cancelled"
            elif len(record.depths) < record.limit:
                record.outcome = "completed"
            else:
                record.outcome, record.reason = "incomplete", "max_new_tokens"
        except (GeneratorExit, asyncio.CancelledError):
            record.outcome, record.reason = "cancelled", record.reason or "client_left"
            raise
        except Exception as error:
            record.reason = type(error).__name__
            raise
        finally:
            self._finish(record)
            answer.cancel()

    def _finish(self, record: Record) -> None:
        self.metrics.answers.labels(record.outcome).inc()
        if record.outcome in ("completed", "incomplete") and record.num_samples:
            self.metrics.real_time_factor.observe(record.real_time_factor(self.sample_rate))
        log_event("answer", **record.fields(self.sample_rate, with_content=self._log_content))

    def note_error(self, code: str | int) -> None:
        """Count an error that a client is told, and log its code."""
        self.metrics.errors.labels(code).inc()
        log_event("error", code=code)

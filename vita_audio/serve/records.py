"""What is measured of an answer, and structured logs: one JSON object in each line."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

from vita_audio.models.decode_step import DecodeCounts
from vita_audio.serve.scheduler import Piece, Seconds
from vita_audio.text import TextTokenizer

log = logging.getLogger(__name__)


@dataclass
class Record:
    """Measures one answer while it is made.

    Attributes:
        endpoint: Where it was asked for.
        session: Id of the realtime session, if any.
        model: Name of the model that answers.
        is_continued: It continues an answer that has ended, so its first sound is not the one a client waits for.
        vad_seconds: Silence that turn detection waited for before `start`.
        start: Time of `perf_counter` when the end of the turn was detected, or the request arrived.
        early: Seconds of work done before `start`, while turn detection waited.
        outcome: completed, incomplete (the longest answer), cancelled or failed.
        reason: Why it was cancelled, incomplete or failed.
        first_sound: Seconds from the end of speech to the first sound, with its parts; empty before it. It is their
            sum less "early", the part of the work that was done before `start`.
        limit: Longest answer, tokens.
        num_prompt, num_prompt_audio: Tokens of the prompt, and those of them that are audio; 0 until it is read.
        num_samples: Samples of sound, at the rate of the codec.
    """

    endpoint: str
    session: str | None = None
    model: str | None = None
    is_continued: bool = False
    vad_seconds: float = 0.0
    start: float = field(default_factory=perf_counter)
    early: float = 0.0
    outcome: str = "failed"
    reason: str | None = None
    question: str = ""
    text: str = ""
    first_sound: dict[str, float] = field(default_factory=dict)
    limit: int = 0
    num_prompt: int = 0
    num_prompt_audio: int = 0
    num_samples: int = 0
    seconds: Seconds = Seconds()
    depths: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)

    def count_prompt(self, prompt: Sequence[int | bytes], tokenizer: TextTokenizer) -> None:
        """Count the tokens of a prompt that was read, as `Conversation.prompt` has them."""
        self.num_prompt = len(prompt)
        self.num_prompt_audio = sum(tokenizer.is_audio(token) for token in prompt if isinstance(token, int))

    def add(self, piece: Piece) -> None:
        """Count the next piece."""
        self.text += piece.chunk.text
        self.depths += piece.chunk.depths
        self.drafts += piece.chunk.drafts
        self.num_samples += len(piece.chunk.wave)
        self.seconds = piece.seconds
        if self.num_samples and not self.first_sound:
            parts = {"encoder": piece.seconds.encoder, "model": piece.seconds.model, "decoder": piece.seconds.decoder}
            waited, total = perf_counter() - self.start, piece.seconds.total
            wait = max(0.0, waited - max(0.0, total - self.early))  # in the queue, and for other answers
            self.first_sound = {"first_sound": self.vad_seconds + waited, "vad": self.vad_seconds, **parts}
            self.first_sound |= {"wait": wait, "early": total - (waited - wait)}

    @property
    def times(self) -> dict[str, int]:
        """The times of the first sound, milliseconds."""
        return {f"{name}_ms": round(1000 * value) for name, value in self.first_sound.items()}

    @property
    def counts(self) -> dict[str, float]:
        """Tokens per backbone pass, and the verified and accepted predictions of the modules, if there are any."""
        counts = DecodeCounts.count(self.depths, self.drafts)
        if counts.tokens_per_pass is None:
            return {}
        verified, accepted = sum(counts.num_verified), sum(counts.num_accepted)
        told = {"verified": verified, "accepted": accepted} if verified else {}
        return {"tokens_per_pass": round(counts.tokens_per_pass, 2), **told}

    def metadata(self, sample_rate: int) -> dict[str, str]:
        """Return times and counts as texts, for clients."""
        factor = self.real_time_factor(sample_rate)
        values = self.times | self.counts | ({} if factor is None else {"real_time_factor": factor})
        return {name: f"{value:.2f}" if isinstance(value, float) else str(value) for name, value in values.items()}

    def real_time_factor(self, sample_rate: int) -> float | None:
        """Return the seconds of work for a second of sound; None without sound."""
        return self.seconds.total * sample_rate / self.num_samples if self.num_samples else None

    def fields(self, sample_rate: int, *, with_content: bool) -> dict[str, Any]:
        """Return the event of a log; texts only `with_content`."""
        factor = self.real_time_factor(sample_rate)
        names = ("endpoint", "session", "model", "outcome", "reason")
        fields = {name: getattr(self, name) for name in names}
        fields |= {"prompt_tokens": self.num_prompt, "answer_tokens": len(self.depths), **self.counts, **self.times}
        fields["audio_seconds"] = round(self.num_samples / sample_rate, 3)
        fields["real_time_factor"] = None if factor is None else round(factor, 3)
        return fields | ({"question": self.question, "answer": self.text} if with_content else {})


def log_event(event: str, **fields: Any) -> None:
    """Log an event, which only a log in JSON shows."""
    log.info(event, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """Formats each record as a line of JSON, with the fields of `log_event`."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname, "event": record.getMessage()}
        line |= getattr(record, "fields", {"logger": record.name})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_as_json() -> None:
    """Write all logs of the process to standard error, as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], force=True)
    log.setLevel(logging.INFO)

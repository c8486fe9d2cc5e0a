"""Limits of the server, each with a flag of the same name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _limit(default: float, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Limits:
    """What clients may use; the texts are those of `--help`."""

    max_streams: int = _limit(4, "answers generated at the same time")
    max_queue: int = _limit(16, "answers that wait for their turn")
    max_sessions: int = _limit(32, "open WebSocket connections")
    max_per_address: int = _limit(
        16, "WebSocket connections, and as many requests with a body, of one address; this machine's have no such limit"
    )
    max_connections: int = _limit(256, "open connections of all kinds; others are closed at once")
    max_audio_seconds: float = _limit(30.0, "length of one turn or uploaded file, s")
    max_conversation_seconds: float = _limit(300.0, "speech that a conversation keeps; older turns are forgotten, s")
    max_voice_seconds: float = _limit(10.0, "length of a voice prompt, s")
    max_text: int = _limit(4000, "characters of one message or system prompt")
    max_turns: int = _limit(40, "messages that a conversation keeps; older ones are forgotten")
    max_requests: int = _limit(32, "HTTP requests with a body at the same time")
    max_bytes: int = _limit(10_000_000, "size of a request, or of one event")
    max_new_tokens: int = _limit(1024, "length of an answer, tokens")
    idle_seconds: float = _limit(300.0, "a session without speech, text or an answer ends after this time, s")
    body_seconds: float = _limit(60.0, "a request is refused if its body takes longer to arrive, s")
    header_seconds: float = _limit(20.0, "a connection ends if the headers of its next request take longer, s")
    audio_rate: float = _limit(20.0, "seconds of audio that a session may send per second, on average")
    ping_seconds: float = _limit(20.0, "a session ends if its client does not answer a ping for this time, s")
    events_per_second: float = _limit(200.0, "mean rate of a session's events; twice as many may come at once")

"""Answers of `SpeechLM`: complete ones and the pieces of streamed ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vita_audio.models.decode_step import DecodeCounts


@dataclass(frozen=True)
class Timings:
    """Time spent on an answer; in a batch, the seconds are those of the whole batch.

    Attributes:
        encode_seconds: Time to read the conversation's audio and encode it.
        generate_seconds: Time in the language model.
        decode_seconds: Time to decode codes to a wave.
        counts: Who made the tokens of this answer, with accepted tokens per backbone pass and acceptance by depth.
    """

    encode_seconds: float
    generate_seconds: float
    decode_seconds: float
    counts: DecodeCounts

    @property
    def num_tokens(self) -> int:
        return self.counts.num_tokens

    @property
    def num_backbone_passes(self) -> int:
        return self.counts.num_backbone_passes

    @property
    def total_seconds(self) -> float:
        return self.encode_seconds + self.generate_seconds + self.decode_seconds


@dataclass(frozen=True)
class Response:
    """A complete answer.

    Attributes:
        text: Text without special tokens.
        codes: Audio codes of the answer.
        wave: (samples,), float32 in [-1, 1]; empty without codes, None if not asked for.
        sample_rate: Sample rate of the wave, Hz.
        ids: Token ids as generated, the final one included.
        timings: Time spent on the answer.
    """

    text: str
    codes: list[int]
    wave: Tensor | None
    sample_rate: int
    ids: list[int]
    timings: Timings

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation, to be followed by the next turn of the user."""
        return {"role": "assistant", "content": self.text, "ids": self.ids}

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of speech; None without speech."""
        if self.wave is None or not len(self.wave):
            return None
        return self.timings.total_seconds * self.sample_rate / len(self.wave)


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; each part may be empty.

    Attributes:
        text: New text.
        codes: New audio codes.
        wave: New samples, (samples,), float32 in [-1, 1].
        ids: New token ids; those of all chunks are the ids of the answer.
        depths: Depth that predicted each id, see `DecodeStep`.
        drafts: Depth whose prediction the backbone verified at each id; `DecodeCounts.count` takes both.
    """

    text: str = ""
    codes: list[int] = field(default_factory=list)
    wave: Tensor = field(default_factory=lambda: torch.zeros(0))
    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)

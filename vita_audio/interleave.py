"""The text/audio ratio: how an assistant turn is laid out in training data and which depth predicts which token.

The same list of numbers describes both, as in VITA-Audio (arXiv 2505.03739): (text, audio, text, audio, ...), where
the last pair repeats without end. In data the numbers are chunk sizes in tokens, and an audio number includes the
begin- and end-of-audio markers. In decoding they are backbone steps followed by multi-token-prediction (MTP) steps.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

BACKBONE = 0  # depth of the backbone; depth k is the k-th prediction depth, made by MTP module k - 1
NUM_MARKERS = 2  # begin and end of audio belong to an audio chunk

MODES: dict[str, tuple[int, ...]] = {
    "vanilla": (8192, 0),
    "balance": (1, 4, 3, 8, 4, 10),
    "boost": (1, 10, 4, 10),
    "turbo": (1, 10),
}


@dataclass(frozen=True)
class InterleavePlan:
    """Text/audio ratio `(text, audio, text, audio, ...)`; the last pair repeats.

    Text numbers are at least 1. An audio number is 0 or more for decoding; laying out data also needs room for the two
    markers and one code, so there it is at least 3 (`check_data`).
    """

    ratio: tuple[int, ...]

    def __post_init__(self):
        numbers = _as_integers(self.ratio)
        if numbers is None or not numbers or len(numbers) % 2 or min(numbers[::2]) < 1 or min(numbers[1::2]) < 0:
            raise ValueError(
                "ratio must have an even number of integers (text, audio, text, audio, ...), text >= 1 and audio >= 0, "
                f"got {self.ratio!r}; known names: {', '.join(MODES)}"
            )
        object.__setattr__(self, "ratio", numbers)

    @classmethod
    def parse(cls, value: InterleavePlan | str | Iterable[int]) -> InterleavePlan:
        """Make a plan from a name (`"boost"`), numbers in a string (`"1,10,4,10"`) or a sequence of integers.

        Raises: ValueError for anything else.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            return cls(value)
        name = value.strip().lower()
        if name in MODES:
            return cls(MODES[name])
        try:
            numbers = tuple(int(number) for number in name.replace(",", " ").split())
        except ValueError as error:
            raise ValueError(f"interleave plan must be one of {', '.join(MODES)} or integers, got {value!r}") from error
        return cls(numbers)

    def check_data(self) -> InterleavePlan:
        """Return self if data can be laid out with it, else raise ValueError."""
        if min(self.ratio[1::2]) <= NUM_MARKERS:
            raise ValueError(
                f"in data every audio number must be at least {NUM_MARKERS + 1} (two markers and a code), "
                f"got {self.ratio}; a ratio such as {MODES['boost']} works, {MODES['vanilla']} is for decoding only"
            )
        return self

    def interleave(self, text_ids: Sequence[int], audio_ids: Sequence[int], begin_id: int, end_id: int) -> list[int]:
        """Lay out one assistant turn: text chunk, begin, audio chunk, end, and so on.

        What is left of the longer side joins its last chunk. When either side is empty the other stays in one piece.

        Raises: ValueError if an audio number has no room for a code (see `check_data`).
        """
        self.check_data()
        text_ids, audio_ids = list(text_ids), list(audio_ids)
        if not text_ids or not audio_ids:
            return [*text_ids, begin_id, *audio_ids, end_id]
        text_chunks = _chunks(text_ids, self.ratio[::2])
        audio_chunks = _chunks(audio_ids, [number - NUM_MARKERS for number in self.ratio[1::2]])
        num_pairs = min(len(text_chunks), len(audio_chunks))
        laid_out: list[int] = []
        for text, audio in zip(_merge_tail(text_chunks, num_pairs), _merge_tail(audio_chunks, num_pairs), strict=True):
            laid_out += [*text, begin_id, *audio, end_id]
        return laid_out

    def steps(self, num_modules: int | None = None) -> Iterator[int]:
        """Yield without end the depth that predicts the next token: 0 for the backbone, k for the k-th depth after it.

        Args:
            num_modules: Modules of the model. A step beyond the last depth becomes a backbone step, and the one after
                it starts again at depth 1. None: as many as the plan asks for.
        """
        pairs = list(zip(self.ratio[::2], self.ratio[1::2], strict=True))
        for num_text, num_audio in chain(pairs, repeat(pairs[-1])):
            yield from repeat(BACKBONE, num_text)
            for step in range(1, num_audio + 1):
                yield step if num_modules is None else step % (num_modules + 1)

    def __str__(self) -> str:
        names = [name for name, ratio in MODES.items() if ratio == self.ratio]
        return names[0] if names else ",".join(map(str, self.ratio))


def _as_integers(values: Iterable[object]) -> tuple[int, ...] | None:
    """Return numbers of any integer type as int; None if one is no integer, or there is nothing to go through."""
    try:
        values = tuple(values)
        return None if any(isinstance(value, bool) for value in values) else tuple(map(operator.index, values))
    except TypeError:
        return None


def _chunks(ids: list[int], sizes: Sequence[int]) -> list[list[int]]:
    """Cut `ids` into pieces of the given sizes, the last size repeating."""
    chunks, start = [], 0
    for size in chain(sizes, repeat(sizes[-1])):
        if start >= len(ids):
            return chunks
        chunks.append(ids[start : start + size])
        start += size


def _merge_tail(chunks: list[list[int]], count: int) -> list[list[int]]:
    """Join everything after the first `count` chunks to the last of them."""
    return [*chunks[: count - 1], list(chain.from_iterable(chunks[count - 1 :]))]

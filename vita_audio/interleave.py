"""The text/audio ratio: the layout of an assistant turn in training data, and the depth that predicts each token.

One list of numbers describes both, as in VITA-Audio (arXiv 2505.03739): (text, audio, text, audio, ...); the last pair
repeats. In data the numbers are chunk sizes in tokens, where audio includes the begin- and end-of-audio markers. In
decoding they are backbone steps, then multi-token-prediction (MTP) steps.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat

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

    Text numbers are at least 1. Audio numbers are at least 0 for decoding and at least 3 for data, where a chunk holds
    two markers and a code (`check_data`).
    """

    ratio: tuple[int, ...]

    def __post_init__(self):
        try:
            values = tuple(self.ratio)
            numbers = () if bool in map(type, values) else tuple(map(operator.index, values))
        except TypeError:
            numbers = ()
        if not numbers or len(numbers) % 2 or min(numbers[::2]) < 1 or min(numbers[1::2]) < 0:
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

    @property
    def has_modules(self) -> bool:
        """Whether modules predict any tokens."""
        return any(self.ratio[1::2])

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

        The rest of the longer side joins its last chunk. If one side is empty, the other is a single chunk.

        Raises: ValueError if an audio number has no room for a code (see `check_data`).
        """
        self.check_data()
        text_ids, audio_ids, laid_out = list(text_ids), list(audio_ids), []
        for num_text, num_audio in self._pairs():
            num_codes = num_audio - NUM_MARKERS
            if len(text_ids) <= num_text or len(audio_ids) <= num_codes:
                return [*laid_out, *text_ids, begin_id, *audio_ids, end_id]
            laid_out += [*text_ids[:num_text], begin_id, *audio_ids[:num_codes], end_id]
            text_ids, audio_ids = text_ids[num_text:], audio_ids[num_codes:]

    def _pairs(self) -> Iterator[tuple[int, int]]:
        pairs = list(zip(self.ratio[::2], self.ratio[1::2], strict=True))
        return chain(pairs, repeat(pairs[-1]))

    def depth(self, place: int, since_backbone: int, num_modules: float) -> int:
        """Return the depth that predicts one token of an answer: 0 for the backbone, k for the k-th depth after it.

        The place fixes the kind of the token, so the layout of the answer does not depend on who made the tokens before
        it: where the plan has MTP steps, the modules follow each other until they run out, wherever the backbone has
        stepped in.

        Args:
            place: Index of the token in the answer.
            since_backbone: Distance to the last token that the backbone made, 1 for the token after it.
            num_modules: Modules of the model.
        """
        for num_text, num_audio in zip(self.ratio[::2], self.ratio[1::2], strict=True):
            if place < num_text + num_audio:
                break
            place -= num_text + num_audio
        place %= num_text + num_audio
        return since_backbone if place >= num_text and since_backbone <= num_modules else BACKBONE

    def steps(self, num_modules: int | None = None) -> Iterator[int]:
        """Yield without end the depth that predicts the next token when no token is rejected.

        Args:
            num_modules: Number of MTP modules. A step beyond the last depth becomes a backbone step, and the next one
                starts again at depth 1. None: as many as the plan asks for.
        """
        depth = BACKBONE
        for place in count():
            depth = self.depth(place, depth + 1, math.inf if num_modules is None else num_modules)
            yield depth

    def __str__(self) -> str:
        names = [name for name, ratio in MODES.items() if ratio == self.ratio]
        return names[0] if names else ",".join(map(str, self.ratio))

"""A figure with what each sample adds to it, so that its uncertainty can be told and two runs compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Score:
    """The ratio of two sums over samples: errors and words, right answers and answers, seconds and seconds.

    Attributes:
        numerators: (samples,), float64.
        denominators: (samples,), float64, not negative.
        ids: What the samples are called, or None if only their order tells.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    ids: tuple[str, ...] | None = None

    def __post_init__(self):
        """Raises: ValueError if there are no samples, numbers are missing or wrong, or ids repeat."""
        for name in ("numerators", "denominators"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(self.ids))
            check_unique(self.ids, "a score")
            check_same_length("sample", len(self.numerators), "id", len(self.ids))
        check_same_length("numerator", len(self.numerators), "denominator", len(self.denominators))
        if not len(self.numerators):
            raise ValueError("a score needs samples, got none")
        if not (np.isfinite(self.numerators).all() and np.isfinite(self.denominators).all()):
            raise ValueError("a score needs finite numbers, got NaN or infinity; count such samples as wrong")
        if self.denominators.min() < 0 or not self.denominators.sum():
            raise ValueError(
                f"a score needs denominators from 0 up and one above it, got {len(self.denominators)} with sum "
                f"{self.denominators.sum():g}; are all references empty?"
            )

    @classmethod
    def of_mean(cls, values: Sequence[float], ids: Sequence[str] | None = None) -> Score:
        """Return the score whose value is the mean; of outcomes, the share that is true."""
        return cls(values, np.ones(len(values)), ids)

    @property
    def value(self) -> float:
        return float(self.numerators.sum() / self.denominators.sum())

    def __len__(self) -> int:
        return len(self.numerators)


def check_unique(ids: Sequence[str], where: str) -> None:
    """Raise ValueError that names ids which occur more than once."""
    if repeated := sorted(name for name, count in Counter(ids).items() if count > 1):
        raise ValueError(f"ids must differ within {where}, got more than one of {shorten(repeated)}")


def check_same_length(one: str, num_one: int, other: str, num_other: int) -> None:
    """Raise ValueError if the counts of two kinds of things that belong together differ."""
    if num_one != num_other:
        raise ValueError(f"every {one} needs its {other}, got {num_one} and {num_other}")


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Return some names for an error message, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")

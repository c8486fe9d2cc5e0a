"""Scores that keep the contribution of each sample, and checks that no text is lost or counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Score:
    """The ratio of two sums over samples: errors and words, right answers and answers, seconds and seconds.

    Attributes:
        numerators: (samples,), float64.
        denominators: (samples,), float64, not negative.
        ids: Names of the samples, or None if they are identified by their order.
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
        """Return the score whose value is the mean of `values`; for outcomes, the share that is true."""
        return cls(values, np.ones(len(values)), ids)

    def grouped(self, keys: Sequence[str]) -> Score:
        """Return the score of equal value whose samples are the groups of samples with equal keys.

        Raises: ValueError unless every sample has its key.
        """
        check_same_length("sample", len(self), "key", len(keys))
        ids, groups = np.unique(np.asarray(keys), return_inverse=True)
        sums = (np.bincount(groups, weights=values) for values in (self.numerators, self.denominators))
        return Score(*sums, ids.tolist())

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
    """Raise ValueError if two numbers that must agree differ."""
    if num_one != num_other:
        raise ValueError(f"every {one} needs its {other}, got {num_one} and {num_other}")


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names for an error message, and the number of the others."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def check_texts(references: Sequence[object], hypotheses: Sequence[object]) -> None:
    """Raise ValueError if the lists differ in length or hold anything but texts (a missing answer is "")."""
    check_same_length("reference", len(references), "hypothesis", len(hypotheses))
    for name, texts in (("reference", references), ("hypothesis", hypotheses)):
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f'each {name} must be a text ("" for none), got {text!r} at place {place}')


def check_answers(texts: Sequence[object], answers: Sequence[object]) -> list[list[str]]:
    """Return the right answers of each text as lists, of which one is enough.

    Raises: ValueError if the lists differ in length or hold anything but texts, or lists of texts as answers.
    """
    check_same_length("text", len(texts), "answer", len(answers))
    check_texts(texts, texts)
    lists = [[wanted] if isinstance(wanted, str) else wanted for wanted in answers]
    for place, wanted in enumerate(lists):
        if not isinstance(wanted, list | tuple) or not all(isinstance(answer, str) for answer in wanted):
            raise ValueError(f"answers must be a text or a list of texts, got {wanted!r} at place {place}")
    return [list(wanted) for wanted in lists]


def read_texts(path: Path) -> dict[str, str]:
    """Read lines of an id, a space and a text, which may be empty; a byte order mark belongs to no id.

    Raises: FileNotFoundError; ValueError for an empty file or an id that occurs twice.
    """
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path} must have lines of an id and a text, got none")
    check_unique([line[0] for line in lines], str(path))
    return {line[0]: line[1] if len(line) == 2 else "" for line in lines}


def pair_texts(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Return ids, references and hypotheses. Raises: ValueError naming ids that only one side has."""
    for one, other, names in (
        ("reference", "hypothesis", references.keys() - hypotheses.keys()),
        ("hypothesis", "reference", hypotheses.keys() - references.keys()),
    ):
        if names:
            raise ValueError(
                f"every {one} needs a {other} of its id, got none for {shorten(sorted(names))}; use an empty text "
                "for a missing answer"
            )
    return list(references), list(references.values()), [hypotheses[name] for name in references]

"""Tasks: what counts as an answer, and the figures that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evaluation.figures import error_counts, error_name, is_right
from evaluation.suites import ASR, SPOKEN_QA, TEXT_QA, TTS, Item

TEXT, TRANSCRIPT = "text", "transcript"  # what the model wrote; what a judge understood of its speech


@dataclass(frozen=True)
class Figure:
    """A rate over samples: sum of the first counts divided by the sum of the second.

    Attributes:
        name: Key in the results; {errors} is wer or cer, by the language.
        title: Column of a table.
        source: Which form of the answer it looks at.
        count: (what was said, item, language) -> (part, whole) of one sample.
        more_is_better: Whether a high rate is good.
    """

    name: str
    title: str
    source: str
    count: Callable[[str, Item, str], tuple[float, float]]
    more_is_better: bool = False

    def key(self, language: str) -> str:
        return self.name.format(errors=error_name(language))

    def badness(self, part: float, whole: float) -> float:
        """Return 0 for a sample that did as well as can be, and more the worse it did."""
        rate = part / whole if whole else part
        return 1 - rate if self.more_is_better else rate


@dataclass(frozen=True)
class Task:
    """Attributes: speaks: whether a wave is made of the answer and a judge listens to it."""

    title: str
    speaks: bool
    figures: tuple[Figure, ...]


def _errors(said: str, item: Item, language: str) -> tuple[float, float]:
    return error_counts(item.references[0], said, language)


def _rightness(said: str, item: Item, language: str) -> tuple[float, float]:
    return float(is_right(said, item.references, keyword_last=item.keyword_last)), 1.0


TASKS = {
    ASR: Task("Recognition", False, (Figure("{errors}", "errors", TEXT, _errors),)),
    TTS: Task("Synthesis", True, (Figure("{errors}", "errors heard", TRANSCRIPT, _errors),)),
    SPOKEN_QA: Task(
        "Spoken questions",
        True,
        (
            Figure("accuracy_text", "right, S→T", TEXT, _rightness, more_is_better=True),
            Figure("accuracy_speech", "right, S→S", TRANSCRIPT, _rightness, more_is_better=True),
        ),
    ),
    TEXT_QA: Task(
        "The same questions as text", False, (Figure("accuracy", "right, T→T", TEXT, _rightness, more_is_better=True),)
    ),
}

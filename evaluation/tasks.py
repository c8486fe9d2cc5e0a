"""Tasks: what counts as an answer, and the figures that are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.figures import TEXT, TRANSCRIPT, Figure, accuracy_figures, error_figures
from evaluation.suites import ASR, SPOKEN_QA, TEXT_QA, TTS


@dataclass(frozen=True)
class Task:
    """Attributes: speaks: whether a wave is made of the answer and a judge listens to it."""

    title: str
    speaks: bool
    figures: tuple[Figure, ...]

    @property
    def own_figures(self) -> tuple[Figure, ...]:
        return tuple(figure for figure in self.figures if not figure.of_reference)


TASKS = {
    ASR: Task("Recognition", False, error_figures(TEXT, "errors")),
    TTS: Task("Synthesis", True, error_figures(TRANSCRIPT, "errors heard")),
    SPOKEN_QA: Task(
        "Spoken questions",
        True,
        (
            *accuracy_figures("accuracy_text", "right, S→T", TEXT),
            *accuracy_figures("accuracy_speech", "right, S→S", TRANSCRIPT),
        ),
    ),
    TEXT_QA: Task("The same questions as text", False, accuracy_figures("accuracy", "right, T→T", TEXT)),
}

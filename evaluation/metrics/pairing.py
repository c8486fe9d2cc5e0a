"""Texts that belong together, checked so that none is lost and none counts twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.metrics.score import check_same_length, check_unique, shorten


def check_texts(references: Sequence[object], hypotheses: Sequence[object]) -> None:
    """Raise ValueError if the lists differ in length or hold anything but texts (an answer that is not there is "")."""
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
    """Read lines of an id, a space and a text, which may be empty.

    Raises: FileNotFoundError; ValueError for an empty file or an id that occurs twice.
    """
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path} must have lines of an id and a text, got none")
    check_unique([line[0] for line in lines], str(path))
    return {line[0]: line[1] if len(line) == 2 else "" for line in lines}


def pair_texts(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Return ids, references and hypotheses in the order of the references.

    Raises: ValueError that names ids which only one side has.
    """
    for one, other, names in (
        ("reference", "hypothesis", references.keys() - hypotheses.keys()),
        ("hypothesis", "reference", hypotheses.keys() - references.keys()),
    ):
        if names:
            raise ValueError(
                f"every {one} needs a {other} of its id, got none for {shorten(sorted(names))}; an empty text stands "
                "for what was not answered"
            )
    return list(references), list(references.values()), [hypotheses[name] for name in references]

"""What one answer scores: the only place that knows which metrics decide, and how figures get their intervals."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import jiwer

from evaluation.answers import KEYWORD_LEEWAY
from evaluation.metrics import contains_answer, normalise

CHARACTER_LANGUAGES = ("zh",)  # scored by characters, others by words


def error_name(language: str) -> str:
    return "cer" if language in CHARACTER_LANGUAGES else "wer"


def scored_tokens(text: str, language: str) -> list[str]:
    """Return what is compared: words of the normalised text, or its letters where a language has no spaces."""
    if language not in CHARACTER_LANGUAGES:
        return normalise(text).split()
    letters = unicodedata.normalize("NFKC", text).lower()
    return [letter for letter in letters if unicodedata.category(letter)[0] in "LN"]


def error_counts(reference: str, hypothesis: str, language: str) -> tuple[int, int]:
    """Return wrong, missing and surplus tokens, and the tokens of the reference."""
    wanted, said = scored_tokens(reference, language), scored_tokens(hypothesis, language)
    if not wanted:
        return len(said), 0
    result = jiwer.process_words(" ".join(wanted), " ".join(said))
    return result.substitutions + result.deletions + result.insertions, len(wanted)


def is_right(said: str, answers: Sequence[str], *, keyword_last: bool = False) -> bool:
    """Say whether one of the answers occurs in what was said; `keyword_last`: at its end."""
    for answer in answers:
        num_words = len(normalise(answer).split())
        window = (num_words + KEYWORD_LEEWAY,) if keyword_last else ()
        if num_words and contains_answer(said, answer, *window):
            return True
    return False


def interval(counts: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return the 95 % interval of sum(first) / sum(second) over samples; None as long as nothing computes it."""
    return None

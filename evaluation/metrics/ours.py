"""Word and character error rates, digit errors, right answers, use of a codebook; texts are normalised alike first.

Rates are fractions (0.1 is 10 %), of all texts together: errors summed, divided by the summed length of the references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import jiwer
import numpy as np

_DIGIT_GROUP_COMMA = re.compile(r"(?<=\d),(?=\d{3})")
_INSIDE_DIGITS = re.compile(r"(?<=\d)(?=\d)")
_WHOLE_NUMBER = re.compile(r"(?<![\d.])\d+(?!\.?\d)")  # a decimal the normaliser reads whole
_LONE_ONE = re.compile(r"\bone\b")  # the Whisper normaliser leaves it, as it may be a pronoun
_TAG = re.compile(r"<[!-;=?-~]*>")  # ASCII without spaces: words in angle brackets are no tag
_BRACKETS = str.maketrans(dict.fromkeys("()[]{}<>（）［］【】〔〕", " "))


@cache
def _whisper_normalizer():
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def without_tags(text: str) -> str:
    """Drop tags such as <unk>; what stands in brackets was said, though the Whisper normaliser would drop it too."""
    return _TAG.sub(" ", text).translate(_BRACKETS)


def normalise(text: str) -> str:
    """Return English text in the form that is scored: lower case, no punctuation or tags, numbers as single digits.

    The Whisper normaliser, and every digit is a word: "three four", "34" and "Thirty-four." all become "3 4". Without
    that a string of digits would be one word, right or wrong as a whole.
    """
    text = _DIGIT_GROUP_COMMA.sub("", without_tags(text))
    text = _WHOLE_NUMBER.sub(lambda number: " ".join(number[0]), text).replace("+", " plus ")
    text = _whisper_normalizer()(text).replace("+", "plus ")
    return " ".join(_INSIDE_DIGITS.sub(" ", _LONE_ONE.sub("1", text)).split())


def whole_numbers(text: str) -> str:
    """Return English text in lower case without punctuation, each number as one word: "thirty four" becomes "34"."""
    return _LONE_ONE.sub("1", _whisper_normalizer()(_DIGIT_GROUP_COMMA.sub("", without_tags(text))))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return substituted, deleted and inserted words per word of the references.

    Raises: ValueError if the lists differ in length or the references have no words.
    """
    return _rate(jiwer.process_words, *_normalised(references, hypotheses))


def digit_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return wrong, missing and surplus digits per digit of the references; all else is dropped on both sides."""
    pairs = _normalised(references, hypotheses)
    return _rate(jiwer.process_characters, *([re.sub(r"\D", "", text) for text in texts] for texts in pairs))


def contains_answer(text: str, answer: str, last_words: int = 0) -> bool:
    """Say whether the words of `answer` occur in `text`, in order and next to each other.

    Args:
        last_words: Look only at so many words at the end of `text`; 0: at all.
    Raises: ValueError if the answer has no words: it would be contained in everything.
    """
    words, wanted = normalise(text).split()[-last_words:], normalise(answer).split()
    if not wanted:
        raise ValueError(f"an answer to look for must have words, got {answer!r}")
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1))


def code_counts(code_sequences: Iterable[Sequence[int]], codebook_size: int) -> np.ndarray:
    """Return how often each code occurs, (codebook_size,). Raises: ValueError if there are no codes."""
    counts = np.zeros(codebook_size)
    for codes in code_sequences:
        counts += np.bincount(np.asarray(codes, dtype=np.int64), minlength=codebook_size)
    if not counts.sum():
        raise ValueError("codebook perplexity needs codes, got none")
    return counts


def codebook_perplexity(code_sequences: Iterable[Sequence[int]], codebook_size: int) -> float:
    """Return how many codes are in use, counted as if all were equally frequent: exp of the entropy of the codes.

    Raises: ValueError if there are no codes.
    """
    counts = code_counts(code_sequences, codebook_size)
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _normalised(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(references) != len(hypotheses):
        raise ValueError(f"every reference needs a hypothesis, got {len(references)} and {len(hypotheses)}")
    return [normalise(text) for text in references], [normalise(text) for text in hypotheses]


def _rate(process, references: list[str], hypotheses: list[str]) -> float:
    if not any(references):
        raise ValueError(f"an error rate needs references with words, got {len(references)} without any")
    result = process(references, hypotheses)
    num_errors = result.substitutions + result.deletions + result.insertions
    return num_errors / (result.hits + result.substitutions + result.deletions)

"""Error rates and accuracies that count what was said, not how it is written.

`evaluation/README.md` lists the forms that are equal. Rates are fractions (0.1 is 10 %) over all texts: the sum of the
errors divided by the summed length of the references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate, chain

import numpy as np
from rapidfuzz.distance import Levenshtein

from evaluation.metrics.chinese import chinese_tokens, space_characters
from evaluation.metrics.english import english_tokens, english_words, number_tokens
from evaluation.metrics.score import Score, check_texts
from evaluation.metrics.spoken_numbers import words_and_digits

_TAG = re.compile(r"<[!-;=?-~]*>")  # ASCII without spaces: words in angle brackets are no tag
_BRACKETS = str.maketrans(dict.fromkeys("()[]{}<>（）［］【】〔〕", " "))
_ARTICLES = frozenset(("a", "an", "the"))


def without_tags(text: str) -> str:
    """Drop tags such as <unk>, but keep text in brackets, which the Whisper normaliser would drop."""
    return _TAG.sub(" ", text).translate(_BRACKETS)


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"en": english_tokens, "zh": chinese_tokens}


def scored_tokens(text: str, language: str = "en") -> list[str]:
    """Return the tokens of a text that are compared: words, or Chinese characters, and single digits.

    Raises: ValueError for an unknown language; MissingPackageError for Chinese without wetext, and for languages other
        than English without num2words.
    """
    tokens = TOKENIZERS.get(language, partial(words_and_digits, language=language))
    return tokens(without_tags(text))


def error_counts(reference: str, hypothesis: str, language: str = "en") -> tuple[int, int]:
    """Return the number of wrong, missing and surplus tokens, and the number of tokens of the reference."""
    wanted, said = (scored_tokens(text, language) for text in (reference, hypothesis))
    return Levenshtein.distance(wanted, said), len(wanted)


def corrected_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], *, language: str = "en", ids: Sequence[str] | None = None
) -> Score:
    """Return wrong, missing and surplus tokens per token of the references.

    Raises: ValueError if the lists differ in length or the references have no tokens, and as `scored_tokens`.
    """
    check_texts(references, hypotheses)
    counts = [error_counts(*pair, language) for pair in zip(references, hypotheses, strict=True)]
    return Score([errors for errors, _ in counts], [length for _, length in counts], ids)


def digits_of(text: str) -> str:
    """Return the digits of an English text, spelled ones as well."""
    return re.sub(r"\D", "", "".join(scored_tokens(text)))


def digit_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Return wrong, missing and surplus digits per digit of English references; all else is dropped on both sides.

    Raises: ValueError if the lists differ in length or the references have no digits.
    """
    check_texts(references, hypotheses)
    wanted, said = ([digits_of(text) for text in texts] for texts in (references, hypotheses))
    return Score(list(map(Levenshtein.distance, wanted, said)), list(map(len, wanted)))


def answer_words(text: str) -> list[str]:
    """Return the words among which an answer is looked for: of "the twenty-one (21) cats" they are 21, 21, cats."""
    words = space_characters(" ".join(english_words(without_tags(text)))).split()
    return [word for word in words if word != "the"] or words


def contains_any(text: str, answers: Sequence[str]) -> bool:
    """Return whether the words of an answer occur in a text, in order and adjacent; an empty answer never does.

    Numbers are compared as whole numbers: 105 contains neither 5 nor 10, and -40 not 40.
    """
    words = answer_words(text)
    return any(_is_among(words, answer_words(answer)) for answer in answers)


def _is_among(words: list[str], wanted: list[str]) -> bool:
    if _ARTICLES.issuperset(wanted):  # articles occur in most texts
        return bool(wanted) and words == wanted
    return _occur(wanted[1:] if wanted[0] in _ARTICLES else wanted, words)


def contains_answer(text: str, answer: str, last_words: int = 0) -> bool:
    """Return whether the words of `answer` occur in `text`, in order and adjacent; numbers match as a whole.

    Args:
        last_words: Number of tokens at the end of `text` to look at; 0: all.
    Raises: ValueError if the answer has no words: it would be contained in everything.
    """
    words, wanted = (english_words(without_tags(text)) for text in (text, answer))
    if not wanted:
        raise ValueError(f"an answer to look for must have words, got {answer!r}")
    return _occur(wanted, words, last_words)


def _occur(wanted: list[str], words: list[str], last_tokens: int = 0) -> bool:
    """Return whether words occur in order and adjacent; digits may be spelled, but the ends of numbers must agree."""
    pieces = [number_tokens(word) for word in words]
    tokens, wanted = list(chain(*pieces)), list(chain(*map(number_tokens, wanted)))
    borders = frozenset(accumulate(map(len, pieces), initial=0))
    earliest = len(tokens) - last_tokens if last_tokens else 0
    return any(
        start >= earliest and start + len(wanted) in borders and tokens[start : start + len(wanted)] == wanted
        for start in borders
    )


def code_counts(code_sequences: Iterable[Sequence[int]], codebook_size: int) -> np.ndarray:
    """Return how often each code occurs, (codebook_size,). Raises: ValueError if there are no codes."""
    codes = np.fromiter(chain.from_iterable(code_sequences), dtype=np.int64)
    if not len(codes):
        raise ValueError("codebook perplexity needs codes, got none")
    return np.bincount(codes, minlength=codebook_size)


def codebook_perplexity(code_sequences: Iterable[Sequence[int]], codebook_size: int) -> float:
    """Return the number of codes in use if all were equally frequent: exp of the entropy of the codes."""
    counts = code_counts(code_sequences, codebook_size)
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))

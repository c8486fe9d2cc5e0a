"""Error rates and accuracies that count what was said, not how it is written; beside those of the reference.

What is compared:
* Tags such as <unk> are dropped; what stands in brackets otherwise was said. Punctuation is no token.
* English: words of the Whisper normaliser, numbers as single digits (`evaluation.metrics.ours.normalise`).
* Chinese: numbers and the like in words and simplified characters by wetext, full width as half, lower case; then every
  character is a token, and every word of other scripts is one.
* Answers: whole words next to each other, numbers as numbers, without "the" and without the article that an answer
  begins with. An empty answer is never right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

from rapidfuzz.distance import Levenshtein

from evaluation.metrics.ours import normalise, whole_numbers, without_tags
from evaluation.metrics.pairing import check_texts
from evaluation.metrics.public import UNITS
from evaluation.metrics.score import Score
from vita_audio.optional import require

_NO_WORD = re.compile(r"[\W_]+")
_SOMETHING_SAID = re.compile(r"[^\W_]|[$€£¢%]")
_AMOUNT_SIGN = re.compile(r"([$€£¢%])")
_ARTICLES = frozenset(("a", "an", "the"))


def _english_words(text: str) -> list[str]:
    return _without_dots(normalise(text).split())


def _without_dots(words: list[str]) -> list[str]:
    """Drop what the Whisper normaliser leaves of dots in a row."""
    return [word for word in words if _SOMETHING_SAID.search(word)]


@cache
def _chinese_normalizer() -> Callable[[str], str]:
    wetext = require("wetext", purpose="the Chinese error rate", install="'vita-audio[evaluation_zh]'")
    return wetext.Normalizer(lang="zh", operator="tn", traditional_to_simple=True, full_to_half=True).normalize


def _chinese_tokens(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", without_tags(text))
    return _NO_WORD.sub(" ", _space_characters(_chinese_normalizer()(text).lower())).split()


def _space_characters(text: str) -> str:
    """Put spaces around characters of scripts without spaces."""
    return "".join(f" {character} " if unicodedata.category(character) == "Lo" else character for character in text)


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"en": _english_words, "zh": _chinese_tokens}


def scored_tokens(text: str, language: str = "en", unit: str = "word") -> list[str]:
    """Return what is compared of a text.

    Args:
        unit: "word", which in Chinese is a character, or "character": English with single spaces between words.
    Raises: ValueError for an unknown language or unit; MissingPackageError for Chinese without wetext.
    """
    if language not in TOKENIZERS or unit not in UNITS:
        raise ValueError(
            f"language must be one of {', '.join(TOKENIZERS)} and unit one of {', '.join(UNITS)}, got {language!r} and "
            f"{unit!r}"
        )
    tokens = TOKENIZERS[language](text)
    return tokens if unit == "word" else list((" " if language == "en" else "").join(tokens))


def error_counts(reference: str, hypothesis: str, language: str = "en", unit: str = "word") -> tuple[int, int]:
    """Return wrong, missing and surplus tokens, and how many the reference has."""
    wanted, said = (scored_tokens(text, language, unit) for text in (reference, hypothesis))
    return Levenshtein.distance(wanted, said), len(wanted)


def corrected_error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    language: str = "en",
    unit: str = "word",
    ids: Sequence[str] | None = None,
) -> Score:
    """Return wrong, missing and surplus tokens per token of the references.

    Raises: ValueError if the lists differ in length or the references have no tokens, and as `scored_tokens`.
    """
    check_texts(references, hypotheses)
    counts = [error_counts(*pair, language, unit) for pair in zip(references, hypotheses, strict=True)]
    return Score([errors for errors, _ in counts], [length for _, length in counts], ids)


def answer_words(text: str) -> list[str]:
    """Return the words among which an answer is looked for: of "the twenty-one (21) cats" they are 21, 21, cats."""
    text = whole_numbers(unicodedata.normalize("NFKC", text))
    words = _without_dots(_AMOUNT_SIGN.sub(r" \1 ", _space_characters(text)).split())
    return [word for word in words if word != "the"] or words


def contains_any(text: str, answers: Sequence[str]) -> bool:
    """Say whether one of the answers occurs in a text, as whole words next to each other; one without words never."""
    words = answer_words(text)
    return any(_is_among(words, answer_words(answer)) for answer in answers)


def _is_among(words: list[str], wanted: list[str]) -> bool:
    if _ARTICLES.issuperset(wanted):  # which are in many a text
        return bool(wanted) and words == wanted
    if wanted[0] in _ARTICLES:
        wanted = wanted[1:]
    starts = range(len(words) - len(wanted) + 1)
    return any(words[start : start + len(wanted)] == wanted for start in starts)

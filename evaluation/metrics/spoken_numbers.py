"""Texts of languages without rules of their own: words without punctuation, numbers as single digits."""

from __future__ import annotations

import re
from functools import cache

from vita_audio.optional import require

LARGEST = 999  # of the numbers in words that are recognised
UNSPACED = ("ja", "ko", "th")  # languages that num2words knows, in which words or numbers are not apart


@cache
def _numbers(language: str) -> dict[tuple[str, ...], str]:
    """Return the numbers up to LARGEST as digits, by their words.

    Raises: MissingPackageError; ValueError for a language without spaces, or one that num2words does not know.
    """
    if language in UNSPACED:
        raise ValueError(f"language must be one with spaces between words, got {language!r}")
    num2words = require(
        "num2words", purpose=f"scoring texts in {language}", install="'vita-audio[evaluation-languages]'"
    )
    try:
        return {tuple(_words(num2words.num2words(number, lang=language))): str(number) for number in range(LARGEST + 1)}
    except NotImplementedError as error:
        raise ValueError(f"language must be one that num2words knows, got {language!r}") from error


@cache
def _normalizer():
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()


def _words(text: str) -> list[str]:
    return _normalizer()(text).split()


def words_and_digits(text: str, language: str) -> list[str]:
    """Return the tokens of a text: lower-case words with their accents, and each digit of a number.

    Spelled numbers become digits, so "cuatro siete uno" equals "471" and "doce" equals "12".

    Raises: as `_numbers`.
    """
    return [token for word in words_and_numbers(text, language) for token in re.findall(r"\d|[^\d]+", word)]


def words_and_numbers(text: str, language: str) -> list[str]:
    """Return the words of a text, among which a number is one word in figures. Raises: as `_numbers`."""
    numbers, words, read, start = _numbers(language), _words(text), [], 0
    longest = max(map(len, numbers))
    while start < len(words):
        ends = range(min(start + longest, len(words)), start, -1)
        end = next((end for end in ends if tuple(words[start:end]) in numbers), start + 1)
        read.append(numbers.get(tuple(words[start:end]), words[start]))
        start = end
    return read

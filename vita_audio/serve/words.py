"""Texts as they are read: bare words for a model that knows nothing else, and the sentences of long ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

# Not after an abbreviation, as in "Dr. Smith" and "No. 4".
NOT_ABBREVIATED = r"(?<!\b(?:Dr|Mr|Ms|St)\.\s)(?<!\bMrs\.\s)(?!(?<=\bNo\.\s)\d)"
SENTENCE_END = rf"(?<=[.!?]\s){NOT_ABBREVIATED}|(?<=[。！？\n])"
BREAKS = (r"(?<=[,;:]\s)|(?<=[，、；：])", r"(?<=\s)", "")  # after clauses, words, characters
KEPT = "LMN"  # first letters of the Unicode categories of letters, their accents, and numbers
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def num_letters(text: str) -> int:
    """Return how many letters and digits a text has."""
    return sum(map(str.isalnum, text))


def has_words(text: str) -> bool:
    """Return whether there is anything to speak: a letter or a digit."""
    return any(map(str.isalnum, text))


def bare_words(text: str) -> str:
    """Return a text in lower case, without any marks but the apostrophes in its words; one without words as it is.

    Digits become English words, one by one: 427 is four two seven.
    """
    if not has_words(text):
        return text
    text = unicodedata.normalize("NFC", text.lower().replace("’", "'"))
    text = re.sub("[0-9]", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
    text = "".join(char if char in "'\n" or unicodedata.category(char)[0] in KEPT else " " for char in text)
    lines = ((word.strip("'") for word in line.split()) for line in text.split("\n"))
    return "\n".join(" ".join(filter(None, words)) for words in lines)


def split_text(text: str, size: Callable[[str], float], max_size: float) -> list[str]:
    """Cut a text after each sentence, and one that is larger than `max_size` also after clauses, words or characters.

    Args:
        size: Size of a part.
    Returns: The parts with words, without the whitespace around them; only a single character may be larger.
    """
    parts = [part for sentence in re.split(SENTENCE_END, text) for part in _cut(sentence, size, max_size, BREAKS)]
    return [part.strip() for part in parts if has_words(part)]


def _cut(text: str, size: Callable[[str], float], max_size: float, breaks: Sequence[str]) -> list[str]:
    if size(text) <= max_size or not breaks:
        return [text]
    parts: list[str] = []
    for piece in re.split(breaks[0], text):
        if parts and size(parts[-1] + piece) <= max_size:
            parts[-1] += piece
        else:
            parts += _cut(piece, size, max_size, breaks[1:])
    return parts

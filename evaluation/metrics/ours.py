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
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import jiwer
import numpy as np
from rapidfuzz.distance import Levenshtein

from evaluation.metrics.public import UNITS
from evaluation.metrics.score import Score, check_texts
from evaluation.optional import require

_DIGIT_GROUP_COMMA = re.compile(r"(?<=\d),(?=\d{3})")
_INSIDE_DIGITS = re.compile(r"(?<=\d)(?=\d)")
_WHOLE_NUMBER = re.compile(r"(?<![\d.])\d+(?!\.?\d)")  # a decimal the normaliser reads whole
_LONE_ONE = re.compile(r"\bone\b")  # the Whisper normaliser leaves it, as it may be a pronoun
_TAG = re.compile(r"<[!-;=?-~]*>")  # ASCII without spaces: words in angle brackets are no tag
_BRACKETS = str.maketrans(dict.fromkeys("()[]{}<>（）［］【】〔〕", " "))
_NO_WORD = re.compile(r"[\W_]+")
_SOMETHING_SAID = re.compile(r"[^\W_]|[$€£¢%]")
_AMOUNT_SIGN = re.compile(r"([$€£¢%])")
_ARTICLES = frozenset(("a", "an", "the"))


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

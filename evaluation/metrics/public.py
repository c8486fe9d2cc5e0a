"""Error rates and accuracies by the rules of the public VITA-Audio evaluation, to compare with published values.

The rules are kept even where they are unfortunate (punctuation next to a word is an error, an answer may be part of
another word); `evaluation.metrics.ours` has better ones. Only input that would lose samples is refused: see
`evaluation.metrics.score`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial

import jiwer
from rapidfuzz.distance import Levenshtein

from evaluation.metrics.score import Score, check_answers, check_texts
from vita_audio.optional import require

UNITS = ("word", "character")
_SKIPPED = frozenset("!,?、。！，；？：「」︰『』《》 \t\r\n")
_ASCII_RUN = re.compile(r"[^ \t\r\n\x80-\U0010ffff]*")
_TAG = re.compile(r"<[^ \t\r\n\x80-\U0010ffff>]*>?")  # ends at the bracket, so that "<a><b>" are two
_INSIDE_TAG = re.compile(r"<[^>]*>?")
_ASCII_PUNCTUATION = re.compile("[" + re.escape(string.punctuation.replace("'", "").replace("\\", "")) + "]")
_SEEDTTS_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰"
    "〾〿–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。" + string.punctuation.replace("'", "")
)
_WITHOUT_PUNCTUATION = str.maketrans("", "", _SEEDTTS_PUNCTUATION)


def tokenize(
    text: str, *, unit: str = "word", split_scripts: bool = True, case_sensitive: bool = False
) -> Iterator[str]:
    """Yield the tokens that are compared.

    Args:
        unit: "word", or "character", which splits tokens that consist of letters and digits only.
        split_scripts: Whether characters of scripts without spaces are tokens (`--char=1` of the reference).
        case_sensitive: Whether to keep the case; otherwise tokens are upper case.
    Raises: ValueError for an unknown unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    for token in _split_scripts(text) if split_scripts else text.split():
        token = _INSIDE_TAG.sub("", token if case_sensitive else token.upper())
        if unit == "character" and token.isalnum():
            yield from token
        elif token:
            yield token


def _split_scripts(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        character = text[position]
        category = unicodedata.category(character)
        end = position + 1
        if character not in _SKIPPED and category not in ("Zs", "Cn"):
            if character == "<":
                end = _TAG.match(text, position).end()
            elif category != "Lo":
                end = _ASCII_RUN.match(text, end).end()
            yield text[position:end]
        position = end


def reference_error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    unit: str = "word",
    split_scripts: bool = True,
    case_sensitive: bool = False,
    ids: Sequence[str] | None = None,
) -> Score:
    """Return wrong, missing and surplus tokens per token of the references; arguments are those of `tokenize`.

    Raises: ValueError if the lists differ in length or the references have no tokens.
    """
    check_texts(references, hypotheses)
    tokens = partial(tokenize, unit=unit, split_scripts=split_scripts, case_sensitive=case_sensitive)
    wanted, said = ([list(tokens(text)) for text in texts] for texts in (references, hypotheses))
    return Score(list(map(Levenshtein.distance, wanted, said)), list(map(len, wanted)), ids)


def contains_pieces(text: str, answers: str | Sequence[str]) -> bool:
    """Return whether the reference finds one of the answers in a text: all its space-separated pieces, in any order.

    Pieces may be parts of words, and an empty answer is found everywhere. If all answers have numbers in words, the
    digits of these are accepted too.
    Raises: MissingPackageError without word2number.
    """
    numbers = require("word2number.w2n", purpose="containment by the reference's rule", install="word2number")
    answers = [answers] if isinstance(answers, str) else answers
    answers = [_ASCII_PUNCTUATION.sub(" ", answer).lower().strip() for answer in answers]
    text = text.lower()
    if any(all(piece in text for piece in answer.split(" ")) for answer in answers):
        return True
    try:
        digits = [str(numbers.word_to_num(answer)) for answer in answers]
    except ValueError:
        return False
    return any(number in text for number in digits)


def reference_containment(
    texts: Sequence[str], answers: Sequence[str | Sequence[str]], *, ids: Sequence[str] | None = None
) -> Score:
    """Return the share of texts in which `contains_pieces` finds one of their answers."""
    lists = check_answers(texts, answers)
    return Score.of_mean([contains_pieces(text, wanted) for text, wanted in zip(texts, lists, strict=True)], ids)


def seedtts_rate(reference: str, hypothesis: str, language: str) -> float:
    """Return the Seed-TTS error rate of a text: words for "en", characters for "zh". Raises: ValueError for others."""
    return float(jiwer.wer(*(_seedtts_words(text, language) for text in (reference, hypothesis))))


def _seedtts_words(text: str, language: str) -> str:
    text = text.translate(_WITHOUT_PUNCTUATION).replace("  ", " ")
    if language not in ("en", "zh"):
        raise ValueError(f"language must be en or zh, got {language!r}")
    return " ".join(text) if language == "zh" else text.lower()


def seedtts_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], language: str, *, ids: Sequence[str] | None = None
) -> Score:
    """Return the mean of the texts' rates; Chinese hypotheses are brought to simplified characters first.

    Raises: ValueError if the lists differ in length; MissingPackageError for Chinese without zhconv.
    """
    check_texts(references, hypotheses)
    if language == "zh":
        zhconv = require("zhconv", purpose="the Chinese Seed-TTS rate", install="'vita-audio[evaluation-zh]'")
        hypotheses = [zhconv.convert(hypothesis, "zh-cn") for hypothesis in hypotheses]
    pairs = zip(references, hypotheses, strict=True)
    return Score.of_mean([seedtts_rate(*pair, language) for pair in pairs], ids)


def libritts_text(text: str) -> str:
    """Return a text in the form in which the reference compares LibriTTS: numbers and dates in words, no punctuation.

    Raises: MissingPackageError without wetext.
    """
    wetext = require("wetext", purpose="the LibriTTS rate", install="'vita-audio[evaluation-zh]'")
    return re.sub(r"\W+", " ", wetext.normalize(text, lang="en", operator="tn"))


def libritts_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], *, ids: Sequence[str] | None = None
) -> Score:
    """Return the word error rate of `libritts_text`."""
    check_texts(references, hypotheses)
    texts = ([libritts_text(text) for text in texts] for texts in (references, hypotheses))
    return reference_error_rate(*texts, ids=ids)

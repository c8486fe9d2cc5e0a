"""Error rates and accuracies by the rules of the public VITA-Audio evaluation, to compare with published figures.

The rules are kept even where they are unfortunate (punctuation next to a word is an error, an answer may be part of
another word); `evaluation.metrics.ours` has better ones. Only behaviour that would lose samples differs: see
`evaluation.metrics.score`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jiwer

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

Pair = tuple[str | None, str | None]  # a token of the reference and of the hypothesis; None: the other stands alone


@dataclass(frozen=True)
class EditCounts:
    """How a hypothesis differs from its reference, in tokens."""

    correct: int
    substituted: int
    deleted: int
    inserted: int

    @property
    def length(self) -> int:
        """Tokens of the reference."""
        return self.correct + self.substituted + self.deleted

    @property
    def errors(self) -> int:
        return self.substituted + self.deleted + self.inserted

    @property
    def percent(self) -> float:
        """Errors per hundred tokens of the reference; 0 without any, though its insertions count in a sum."""
        return 100 * self.errors / self.length if self.length else 0.0


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


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """Return the shortest edit as pairs of tokens.

    From the end backwards, a deletion goes before an insertion, and both before a match or substitution of the same
    distance; this decides only the kinds of the errors, not their number.
    """
    distances = _distances(reference, hypothesis)
    pairs: list[Pair] = []
    row, column = len(reference), len(hypothesis)
    while row or column:
        here = distances[row][column]
        if row and distances[row - 1][column] + 1 == here:
            row -= 1
            pairs.append((reference[row], None))
        elif column and distances[row][column - 1] + 1 == here:
            column -= 1
            pairs.append((None, hypothesis[column]))
        else:
            row, column = row - 1, column - 1
            pairs.append((reference[row], hypothesis[column]))
    return pairs[::-1]


def _distances(reference: Sequence[str], hypothesis: Sequence[str]) -> list[list[int]]:
    """Return edits between all beginnings, (reference + 1, hypothesis + 1)."""
    rows = [list(range(len(hypothesis) + 1))]
    for index, token in enumerate(reference, start=1):
        above, row = rows[-1], [index]
        for column, other in enumerate(hypothesis):
            row.append(min(above[column + 1] + 1, row[column] + 1, above[column] + (token != other)))
        rows.append(row)
    return rows


def count_edits(pairs: Iterable[Pair]) -> EditCounts:
    kinds = [
        "deleted" if hypothesis is None else "inserted" if reference is None else reference == hypothesis
        for reference, hypothesis in pairs
    ]
    return EditCounts(kinds.count(True), kinds.count(False), kinds.count("deleted"), kinds.count("inserted"))


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
    counts = [
        count_edits(align(list(tokens(reference)), list(tokens(hypothesis))))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    return Score([count.errors for count in counts], [count.length for count in counts], ids)


def contains_pieces(text: str, answers: str | Sequence[str]) -> bool:
    """Say whether the reference finds one of the answers in a text: all its pieces between spaces, in any order.

    Pieces may be parts of words, and an empty answer is found everywhere. If all answers have numbers in words, the
    digits of these are looked for too.
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
    """Return the share of texts that contain one of their answers by `contains_pieces`.

    Raises: ValueError if the lists differ in length or hold anything but texts.
    """
    lists = check_answers(texts, answers)
    return Score.of_mean([contains_pieces(text, wanted) for text, wanted in zip(texts, lists, strict=True)], ids)


def seedtts_rates(reference: str, hypothesis: str, language: str) -> dict[str, float]:
    """Return the error rate of one text as Seed-TTS measures it, and its parts by kind of error.

    Args:
        language: "en", by words, or "zh", by characters.
    Raises: ValueError for other languages.
    """
    words = [_seedtts_words(text, language) for text in (reference, hypothesis)]
    result, length = jiwer.process_words(*words), len(words[0].split(" "))
    kinds = {"substituted": result.substitutions, "deleted": result.deletions, "inserted": result.insertions}
    return {"wer": float(result.wer)} | {kind: count / length for kind, count in kinds.items()}


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
    simplify = _simplifier() if language == "zh" else str
    pairs = zip(references, hypotheses, strict=True)
    rates = [seedtts_rates(reference, simplify(hypothesis), language)["wer"] for reference, hypothesis in pairs]
    return Score.of_mean(rates, ids)


def _simplifier() -> Callable[[str], str]:
    zhconv = require("zhconv", purpose="the Chinese Seed-TTS rate", install="'vita-audio[evaluation_zh]'")
    return partial(zhconv.convert, locale="zh-cn")


def spell_out(text: str) -> str:
    """Return an English text with numbers, dates and the like in words, as LibriTTS is prepared; case is kept.

    Raises: MissingPackageError without wetext.
    """
    wetext = require("wetext", purpose="the LibriTTS rate", install="'vita-audio[evaluation_zh]'")
    return wetext.normalize(text, lang="en", operator="tn")


def libritts_text(text: str) -> str:
    """Return a text in the form in which the reference compares LibriTTS."""
    return without_symbols(spell_out(text))


def without_symbols(text: str) -> str:
    """Put a space in place of all but letters, digits and low lines."""
    return re.sub(r"\W+", " ", text)


def libritts_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], *, ids: Sequence[str] | None = None
) -> Score:
    """Return the word error rate of `libritts_text`."""
    check_texts(references, hypotheses)
    texts = ([libritts_text(text) for text in texts] for texts in (references, hypotheses))
    return reference_error_rate(*texts, ids=ids)

"""Chinese texts as tokens, with one reading per number.

wetext turns figures, signs and units into words; then every numeral, whichever of its right readings was written, is
replaced by the digits of its value. `evaluation/README.md` lists the forms that are equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

from vita_audio.optional import require

Rules = tuple[tuple[re.Pattern[str], Any], ...]


def compiled(*rules: tuple[str, Any]) -> Rules:
    """Return patterns and their replacements (text or function) for `replace_all`."""
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


def replace_all(rules: Rules, text: str) -> str:
    """Apply rules in their order."""
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


_DIGITS = {numeral: str(value) for value, numeral in enumerate("零一二三四五六七八九")} | {
    "〇": "0",
    "幺": "1",
    "两": "2",
}
_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_DIGIT, _CHARACTER = f"[{''.join(_DIGITS)}]", f"[{''.join(_DIGITS)}{''.join(_SCALES)}]"
_NUMERAL = re.compile(
    f"(?<![几数](?=[十百千万亿]))({_CHARACTER}+)(?:点({_DIGIT}+)(?:(千(?=[克米瓦])|[百千]?[万亿]亿?)|(?![十百千])))?"
)
_ABOUT = frozenset("一二 二三 两三 三四 三五 四五 五六 六七 七八 八九".split())  # "三四个" is three or four, not 34
_BEFORE_WETEXT = compiled(
    ("\u2212", "-"),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"(?<![\d.,:] )(?<![\d.,:])([1-9]\d{0,2}(?: \d{3})+)(?![\d.,:]| \d)", lambda found: found[1].replace(" ", "")),
    (r"(?<=\d{3})-(?=\d{3,}(?!\d|年))", ""),  # telephone numbers; wetext reads the hyphen as "minus"
    (r"(?<=\d) ?g(?![A-Za-z])", "克"),
    (r"(\d[\d.]*)‰", r"千分之\1"),
    (r"(?<=\d) (?=\d+/\d)", "又"),
    (
        r"(?<![\d.:/-])(?:0\d{2,}|\d{13,})(?![\d.:/-])",
        lambda found: "".join("零一二三四五六七八九"[int(d)] for d in found[0]),
    ),
)
_BEFORE_NUMERALS = compiled(
    (f"零下(?={_CHARACTER})", "负"),
    ("分之百", "分之一百"),
    (f"(?<={_CHARACTER})公斤", "千克"),
    (f"(?<={_CHARACTER})公里", "千米"),
    (f"(?<={_CHARACTER}点)([二三四五]?十[一二三四五六七八九]?)(?!分|{_CHARACTER})", r"\1分"),
    (f"(?<={_CHARACTER}点)半", "三十分"),
    (f"(?<={_CHARACTER}点)一刻", "十五分"),
    (f"(?<={_CHARACTER}点)三刻", "四十五分"),
    (f"(?<={_CHARACTER}点)[整钟]", ""),
)
_NO_WORD = re.compile(r"[\W_]+")


@cache
def _wetext() -> Callable[[str], str]:
    wetext = require("wetext", purpose="the Chinese error rate", install="'vita-audio[evaluation-zh]'")
    return wetext.Normalizer(lang="zh", operator="tn", traditional_to_simple=True, full_to_half=True).normalize


def chinese_tokens(text: str) -> list[str]:
    """Return the tokens of a Chinese text without tags. Raises: MissingPackageError without wetext."""
    text = replace_all(_BEFORE_WETEXT, unify_characters(text))
    text = replace_all(_BEFORE_NUMERALS, _wetext()(text).lower())
    text = re.sub(r"(\d)", r" \1 ", read_numerals(text))
    return _NO_WORD.sub(" ", space_characters(text)).split()


def unify_characters(text: str) -> str:
    """Return a text in Unicode's form NFKC, in which "½" is " 1/2"; NFKC alone would make "1½" eleven halves."""
    text = "".join(
        f" {character}" if unicodedata.decomposition(character).startswith("<fraction>") else character
        for character in text
    )
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def space_characters(text: str) -> str:
    """Put spaces around characters of scripts without spaces."""
    return "".join(f" {character} " if unicodedata.category(character) == "Lo" else character for character in text)


def read_numerals(text: str) -> str:
    """Return simplified Chinese text with the digits of every numeral's value: 二百 and 两百 become 200."""
    return _NUMERAL.sub(_read, text)


def _read(found: re.Match) -> str:
    """Return the digits of a numeral, with 万 or 亿 in place of trailing zeros; unchanged if it is no single number."""
    whole, decimals, scale = found.groups()
    digits = _digits(whole)
    if digits is None:
        return found[0]
    if not decimals:
        return _round(digits)
    decimals = _one_by_one(decimals)
    if not scale:
        return f"{digits}点{decimals}"
    for character in scale:
        digits, decimals = _times(digits, decimals, _SCALES[character])
    return _round(digits) + (f"点{decimals}" if decimals else "")


def _times(digits: str, decimals: str, scale: int) -> tuple[str, str]:
    product = format((Decimal(f"{digits}.{decimals or 0}") * scale).normalize(), "f")
    digits, _, decimals = product.partition(".")
    return digits, decimals


def _round(digits: str) -> str:
    for character, zeros in (("亿", "0" * 8), ("万", "0" * 4)):
        if digits.endswith(zeros) and digits[0] != "0":
            return digits.removesuffix(zeros) + character
    return digits


def _one_by_one(numerals: str) -> str:
    return "".join(_DIGITS[numeral] for numeral in numerals)


def _digits(numeral: str) -> str | None:
    """Return the digits of a numeral without decimals; None if it stands for no single number."""
    if not all(character in _DIGITS for character in numeral):
        value = _amount(numeral)
        return None if value is None else str(value)
    is_string = len(numeral) > 1
    if numeral in _ABOUT or numeral == "幺" or (is_string and "两" in numeral):
        return None
    return _one_by_one(numeral)


def _amount(numeral: str) -> int | None:
    """Return the value of a numeral with scales: of "一万二" it is 12000, as of "一万二千"."""
    if numeral[0] in "零〇百千万亿":
        return None
    total, section, low, digit = 0, 0, 10**4, None  # section: value below the next 万 or 亿; low: its last scale
    for character in numeral:
        scale = _SCALES.get(character)
        if scale is None:
            if digit:
                return None
            digit = int(_DIGITS[character])
            continue
        if scale >= 10**4:
            section += digit or 0
            if scale == 10**8:
                section, total = total + section, 0
            if not section or total % 10**8 or section >= scale:
                return None
            total += section * scale
            section, low = 0, 10**4
        elif scale < low and (digit or character == "十"):
            section, low = section + (digit or 1) * scale, scale
        elif section and scale > low:
            section, low = (section + (digit or 0)) * scale, scale  # "五十千瓦"
        else:
            return None
        digit = None
    if digit and numeral[-2] in "百千万亿":
        digit *= _SCALES[numeral[-2]] // 10
    return total + section + (digit or 0)

"""English texts as words, with one form per amount.

Signs and abbreviations that are read as words ("$5.50", "-5", "20 mm", "10:00", "&") are replaced by these words.
The Whisper normaliser does contractions, punctuation and spelling; `read_numbers` takes the place of its number step,
which loses signs and leading zeros. `evaluation/README.md` lists the forms that are equal.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from itertools import chain
from pathlib import Path

import yaml

from evaluation.metrics.chinese import compiled, replace_all, unify_characters

_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_ONES = {word: value for value, word in enumerate(_WORDS["digits_and_teens"].split())}
_TENS = {word: 10 * value for value, word in enumerate(_WORDS["tens"].split(), start=2)}
_SCALES = {word: 1000**power for power, word in enumerate(_WORDS["scales"].split(), start=1)}
_SCALES["k"] = 1000
_OH = ("o", "oh")
_REPEATS = {"double": 2, "triple": 3}
_NOT_COUNTED = frozenset(_WORDS["not_counted"].split())


def _endings() -> dict[str, tuple[str, str]]:
    """Return the cardinal number and a marker of the ending of ordinals and plurals."""
    ordinals = {f"{word}th": word for word in (*_ONES, "hundred", *_SCALES)}
    ordinals |= _WORDS["irregular_ordinals"] | {f"{word[:-1]}ieth": word for word in _TENS}
    plurals = {f"{word}s": (cardinal, "+ths") for word, cardinal in ordinals.items() if word != "second"}
    decades = {f"{word[:-1]}ies": (word, "+s") for word in _TENS} | {"hundreds": ("hundred", "+s")}
    return {word: (cardinal, "+th") for word, cardinal in ordinals.items()} | plurals | decades


_ENDINGS = _endings()
_FIGURE_WITH_ENDING = re.compile(r"(\d+)((?:st|nd|rd|th)s?|s)")
_LETTER_MEETS_DIGIT = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])(?!(?:(?:st|nd|rd|th)s?|s)\b)")
_NUMBER = re.compile(r"-?\d[\d.]*(?:(?:st|nd|rd|th)?s?)")
_AFTER_THE_END = ("",) * 4  # so that the words after any position can be looked at

_UNITS = {
    name: unit
    for unit, others in _WORDS["units"].items()
    for name in (unit, unit.removesuffix("s"), *(others or "").split())
}
_CURRENCIES, _SCALE_SIGNS = _WORDS["currencies"], _WORDS["scale_signs"]
_PARTS = dict(enumerate(_WORDS["parts"].split(), start=2))


def _money(found: re.Match) -> str:
    sign, amount, scale = found.groups()
    scale = (scale or "").lower().lstrip(" -")
    return f" {amount} {_SCALE_SIGNS.get(scale, scale)} {_CURRENCIES[sign]} "


def _fraction(found: re.Match) -> str:
    whole, numerator, denominator = found[1], int(found[2]), int(found[3])
    if not 0 < numerator < denominator:
        return found[0]
    part = _PARTS[denominator]
    if whole:
        return f"{whole}and a half" if denominator == 2 else f"{whole}and {numerator} {part}{'s' * (numerator > 1)}"
    return f"{numerator} {part}{'s' * (numerator > 1)}"


_AMOUNT_FOLLOWS = r"(?=[$£€¥]?\.?\d)"
_WRITTEN_FORMS = compiled(
    # characters with several forms
    ("[\u2018\u2019`]", "'"),
    (r"\.{2,}", " "),
    # signs: a hyphen is one only where no word or number stands before it
    (rf"\u2212\s*{_AMOUNT_FOLLOWS}", " minus "),
    (rf"(?<![\w.%$£€¥°'-])-{_AMOUNT_FOLLOWS}", " minus "),
    (r"([$£€¥])-(?=\.?\d)", r"minus \1"),
    # digit groups, decimals, "No. 5"
    (r"(?<=\d),(?=(?:\d\d,)*\d{3}(?!\d))", ""),
    (r"(?<=\d),(?=\d)", " "),
    (r"(?<![\d.:] )(?<![\d.:])([1-9]\d{0,2}(?: \d{3})+)(?![\d.:]?\d| \d)", lambda found: found[1].replace(" ", "")),
    (r"(?i)\bno\.\s*(?=\d)|#(?=\d)", "number "),
    (r"(?<=[A-Za-z])\.(?=\d)", " "),
    (r"(?<!\d)\.(?=\d)", "0."),
    # times and initials
    (r"(?i)\bo ?'? ?clock\b", "oclock"),
    (r"\b([A-Z])\.((?: [A-Z]\.)+)(?!\w)", lambda found: re.sub(r"[. ]", "", found[0])),
    (r"\b[A-Za-z](?:\.[A-Za-z])+\b\.?", lambda found: found[0].replace(".", "")),
    (r"(?i)(?<![\d.])(\d\d?)\.([0-5]\d)(?= ?[ap]m\b)", r"\1 \2"),
    (r"(?i)(?<![\d:])(1[0-2]|0?[1-9]):00 ?(?=[ap]m\b)", r"\1 "),
    (r"(?<![\d:])(1[0-2]|0?[1-9]):00(?![:\d])", r"\1 oclock"),
    # money
    (
        r"(?i)([$£€¥])\s?(\d+(?:\.\d+)?)"
        r"((?:k|mn?|bn?|tn)(?![a-z])|[ -](?:hundred|thousand|million|billion|trillion)\b)?",
        _money,
    ),
    (r"(?<=\d) ?([$£€¥])(?! ?\d)", lambda found: f" {_CURRENCIES[found[1]]} "),
    (r"¢(\d+)|(\d+) ?¢", r"\1\2 cents"),
    ("[$£€¥¢]", " "),
    (r"\b(\d\d?)p\b", r"\1 pence"),
    # fractions, decades, units of one letter, temperatures
    (r"(?<![\d/.])(\d+ )?(\d)/([2-9]|10)(?![/\d])", _fraction),
    (r"(?<=\d)'s\b", "s"),
    (r"(?<=\d)M\b", " million"),
    (r"(?<=\d) ?g\b", " grams"),
    (r"(?<=\d) ?m\b(?!/)", " meters"),
    (r"(?<=\d) ?l\b", " liters"),
    (r"(?i)\bkm/h\b", "kmh"),
    (r" ?°C\b", " degrees celsius"),
    (r" ?°F\b", " degrees fahrenheit"),
    ("°", " degrees "),
    # other signs
    ("&", " and "),
    (r"\+", " plus "),
    ("=", " equals "),
    (r"(?i)%|\bper cent\b", " percent "),
)
_BILLS = "(dollars|euros|pounds)"
_UNIT = "|".join(sorted(set(_UNITS.values())))
_READ_TOGETHER = compiled(  # "three fourths"; "five dollars and fifty cents" and "$5.5" are "5.50 dollars"
    (r"(?<=\d) 4ths\b", " quarters"),
    (r"\b1 4th\b", "1 quarter"),
    (rf"(?<![\d.])(\d+) {_BILLS} (?:and )?(\d\d) (?:cents|pence)\b", r"\1.\3 \2"),
    (rf"(?<![\d.])(\d+) {_BILLS} (?:and )?(\d) (?:cents|pence)\b", r"\1.0\3 \2"),
    (rf"(?<![\d.])(\d+) {_BILLS} (\d\d)\b(?! (?:{_UNIT}|-?\d))", r"\1.\3 \2"),
    (rf"(?<=\d)\.00 (?={_BILLS}\b)", " "),
    (rf"(?<=\d)(\.\d) (?={_BILLS}\b)", r"\g<1>0 "),
    (r"(?<![\d.])0\.(?:0([1-9])|([1-9]\d)) dollars\b", r"\1\2 cents"),
    (r"(?<![\d.])0\.(?:0([1-9])|([1-9]\d)) pounds\b", r"\1\2 pence"),
)


@cache
def _whisper_normalizer():
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer = EnglishTextNormalizer()
    normalizer.ignore_patterns = r"\b(hmm|mhm|mmm|uh|um)\b"  # without "mm", which may be a unit
    normalizer.standardize_numbers = read_numbers
    return normalizer


def english_words(text: str) -> list[str]:
    """Return the words of an English text without tags; a number is one word, as "-10.5", "21st" or "007"."""
    text = replace_all(_WRITTEN_FORMS, unify_characters(text))
    return [word for word in _whisper_normalizer()(text).split() if any(map(str.isalnum, word))]


def english_tokens(text: str) -> list[str]:
    """Return the tokens of an English text without tags."""
    return [token for word in english_words(text) for token in number_tokens(word)]


def number_tokens(word: str) -> list[str]:
    """Return a word as the tokens that are scored: for a number its sign, digits and decimal point."""
    if not _NUMBER.fullmatch(word):
        return [word]
    names = {"-": "minus", ".": "point"}
    return [names.get(part, part) for part in re.findall(r"[-.]|\d[a-z]*", word)]


def read_numbers(text: str) -> str:
    """Return lower-case text without punctuation in which every number is figures with its sign.

    Spelled digits and years become one number, as the Whisper normaliser has it: "four two seven" 427, "nineteen
    sixty nine" 1969. A unit after a number takes one form.
    """
    text = _LETTER_MEETS_DIGIT.sub(" ", text)
    words = ["", *chain.from_iterable(map(_without_ending, text.split())), *_AFTER_THE_END]
    read: list[str] = []
    spelled = False  # whether the last word read is a number in words, without an ending
    position = 1
    while position < len(words) - len(_AFTER_THE_END):
        word, found = words[position], _number(words, position)
        if found is None:
            if words[position + 1] == "+s":  # "hundreds of people"
                word, position = f"{word}s", position + 1
            after_number = bool(read) and _is_number(read[-1])
            if after_number or word != "mm":
                read.append(_UNITS.get(word, word) if after_number else word)
            position, spelled = position + 1, False
            continue
        number, end = found
        ending = words[end] if words[end].startswith("+") else ""
        in_words = not word[0].isdecimal() and number.isdecimal()
        if spelled and in_words and len(number) <= 2 and ending in ("", "+s"):
            read[-1] += number
        elif read and read[-1] in ("minus", "negative"):
            subtracts = len(read) > 1 and _is_number(read[-2])
            read[-1:] = ["minus", number] if subtracts else [f"-{number}"]
        else:
            read.append(number)
        spelled = in_words and not ending
        if ending:
            read[-1] = _with_ending(read[-1], ending[1:])
        position = end + bool(ending)
    return replace_all(_READ_TOGETHER, " ".join(read))


def _without_ending(word: str) -> tuple[str, ...]:
    if figure := _FIGURE_WITH_ENDING.fullmatch(word):
        return figure[1], "+s" if figure[2] == "s" else "+ths" if figure[2].endswith("s") else "+th"
    return _ENDINGS.get(word, (word,))


def _with_ending(number: str, ending: str) -> str:
    if ending == "s":
        return f"{number}s"
    ordinal = "th" if number[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")
    return number + ordinal + ending.removeprefix("th")


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "").isdecimal()


Read = tuple[str, int] | None  # the number as figures, and the position after it


def _number(words: list[str], start: int) -> Read:
    """Return the number that begins at a position, without sign and ending."""
    word, following, before = words[start], words[start + 1], words[start - 1]
    if word in _REPEATS and (digit := _digit(following)):
        return digit * _REPEATS[word], start + 2
    if word in _OH:
        end = next(place for place in range(start, len(words)) if words[place] not in _OH)
        return ("0" * (end - start), end) if _counts(before) or _counts(words[end]) else None
    if (word, following) == ("half", "a") and words[start + 2] in _SCALES:
        return _with_decimals(words, "0.5", start + 2)
    if word == "point" and before not in ("the", "a", "this", "that"):
        return _with_decimals(words, "0", start) if _decimals(words, start + 1) else None
    if word[:1].isdecimal() and (word[0] == "0" or not _is_amount(word)):
        return _with_decimals(words, word, start + 1)
    integer = _integer(words, start)
    if integer is None:
        return None
    value, end = integer
    is_pronoun = word == "one" and (before in _NOT_COUNTED or words[end] == "another")
    if is_pronoun and end == start + 1 and not words[end].startswith("+"):
        return None
    return _with_decimals(words, str(value), end)


def _with_decimals(words: list[str], number: str, end: int) -> Read:
    """Extend a number by "point" and digits, "and a half", and the scale of a decimal number that follow it."""
    while words[end] == "point" and (decimals := _decimals(words, end + 1)):
        number, end = f"{number}.{decimals[0]}", decimals[1]
    if number.isdecimal() and words[end : end + 3] == ["and", "a", "half"]:
        number, end = f"{number}.5", end + 3
    scale = _SCALES.get(words[end])
    if scale and number.count(".") == 1:
        number, end = format((Decimal(number) * scale).normalize(), "f"), end + 1
    return number, end


def _decimals(words: list[str], start: int) -> Read:
    if words[start].isdecimal():
        return words[start], start + 1
    end, digits = start, ""
    while digit := _digit(words[end]):
        digits, end = digits + digit, end + 1
    if digits:
        return digits, end
    small = _below_hundred(words, start)
    return small and (str(small[0]), small[1])


def _digit(word: str) -> str:
    if word in _OH or (len(word) == 1 and word.isdecimal()):
        return "0" if word in _OH else word
    return str(_ONES[word]) if _ONES.get(word, 10) < 10 else ""


def _is_amount(word: str) -> bool:
    return word.isdecimal() and len(word) <= 30  # int() takes no more than 4300 digits; spoken numbers are shorter


def _counts(word: str) -> bool:
    return word in _ONES or word in _TENS or word.isdecimal()


def _integer(words: list[str], start: int) -> tuple[int, int] | None:
    """Read groups below a thousand, each with a smaller scale than the one before: "two million and five"."""
    total, lowest, end = 0, None, start
    while True:
        group = _below_thousand(words, end + (lowest is not None and words[end] == "and"))
        if group is None:
            break
        value, after = group
        scale = _SCALES.get(words[after])
        fits = lowest is None or (scale or value) < lowest
        if scale and value and fits:
            total, lowest, end = total + value * scale, scale, after + 1
            continue
        if lowest is None or (not scale and 0 < value and fits):
            total, end = total + value, after
        break
    return (total, end) if end > start else None


def _below_thousand(words: list[str], start: int) -> tuple[int, int] | None:
    word, following = words[start], words[start + 1]
    is_scale = word == "hundred" or word in _SCALES
    if word == "a" and (following == "hundred" or following in _SCALES):
        small = 1, start + 1
    elif is_scale and following.startswith("+th"):  # "the hundredth"
        small = 1, start
    elif _is_amount(word):
        small = int(word), start + 1
    else:
        small = _below_hundred(words, start)
    if small is None:
        return None
    value, end = small
    if words[end] == "hundred" and 0 < value < 100:
        value, end = 100 * value, end + 1
        rest = _below_hundred(words, end + (words[end] == "and"))
        if rest and rest[0] and words[rest[1]] != "hundred":
            return value + rest[0], rest[1]
    return value, end


def _below_hundred(words: list[str], start: int) -> tuple[int, int] | None:
    word, ones = words[start], _ONES.get(words[start + 1], 0)
    if word in _TENS:
        return (_TENS[word] + ones, start + 2) if 0 < ones < 10 else (_TENS[word], start + 1)
    return (_ONES[word], start + 1) if word in _ONES else None

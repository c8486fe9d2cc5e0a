"""Numbers in words and figures: the same ones are equal, all up to 10,000 and at random beyond; others differ."""

import random

import pytest

from evaluation.metrics.english import english_words, read_numbers
from evaluation.metrics.ours import contains_any, digit_error_rate, error_counts, scored_tokens

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def spoken(number: int, conjunction: str = " and ") -> str:
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    for value, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= value:
            rest = number % value
            joint = conjunction if rest < 100 else " "
            return f"{spoken(number // value, conjunction)} {name}" + (
                f"{joint}{spoken(rest, conjunction)}" if rest else ""
            )
    raise AssertionError


def some_numbers(num: int = 2000) -> list[int]:
    draw = random.Random(0)
    return [draw.randrange(10 ** draw.randint(1, 9)) for _ in range(num)]


@pytest.mark.parametrize("conjunction", [" and ", " "])
def test_all_numbers_in_words_are_their_figures(conjunction):
    for number in (*range(10_001), *some_numbers(), 10**9, 10**9 + 1):
        text = f"about {spoken(number, conjunction)} people".replace("-", " ")
        assert read_numbers(text) == read_numbers(f"about {number} people") == f"about {number} people"
    for number in (*range(0, 10_001, 67), *some_numbers(200)):
        words = english_words(f"about {spoken(number, conjunction)} people")
        assert words == english_words(f"about {number:,} people") == ["about", str(number), "people"]


@pytest.mark.parametrize(
    "figures, words",
    [
        ("${}", "{} dollars"),
        ("£{}", "{} pounds"),
        ("€{:,}", "{} euros"),
        ("-{}", "minus {}"),
        ("\u2212{:,}", "negative {}"),
        ("-${}", "minus {} dollars"),
        ("{}%", "{} percent"),
        ("{}mm", "{} millimetres"),
        ("{} kg", "{} kilograms"),
        ("{}°C", "{} degrees celsius"),
        ("{} million", "{} million"),
        ("${}bn", "{} billion dollars"),
    ],
)
def test_numbers_with_sign_currency_or_unit(figures, words):
    limit = 1000 if "million" in words or "billion" in words else 10**9
    for number in (*range(1, 100), *(number for number in some_numbers(200) if 0 < number < limit)):
        one, other = figures.format(number), words.format(spoken(number))
        assert scored_tokens(f"it was {one} then") == scored_tokens(f"it was {other} then"), one
        assert contains_any(f"it was {one} then", [other]) and not contains_any(f"it was {one} then", [f"1{number}"])


def test_ordinals_decades_and_cents():
    for number in (*range(1, 131), 200, 212, 999):
        units = (
            {"1": "st", "2": "nd", "3": "rd"}.get(str(number)[-1], "th") if number % 100 not in (11, 12, 13) else "th"
        )
        words = spoken(number)
        *start, last = words.replace("-", " ").split()
        irregular = dict(
            one="first", two="second", three="third", five="fifth", eight="eighth", nine="ninth", twelve="twelfth"
        )
        last = irregular.get(last, last[:-1] + "ieth" if last.endswith("y") else last + "th")
        assert scored_tokens(f"the {number}{units}") == scored_tokens(f"the {' '.join((*start, last))}")
    for cents in range(1, 100):
        assert scored_tokens(f"$7.{cents:02}") == scored_tokens(f"seven dollars and {spoken(cents)} cents")
        assert scored_tokens(f"$0.{cents:02}") == scored_tokens(f"{spoken(cents)} cents")
    for minute in range(60):
        said = "o'clock" if minute == 0 else f"oh {ONES[minute]}" if minute < 10 else spoken(minute)
        assert scored_tokens(f"at 7:{minute:02}") == scored_tokens(f"at seven {said}")


def test_different_numbers_are_never_the_same():
    seen: dict[str, str] = {}
    forms = ("{}", "-{}", "${}", "£{}", "€{}", "{}%", "{} mm", "{} cm", "{}.5", "0.{}", "{}th", "${}.25", "0{}")
    for number in {*range(1, 301), *some_numbers(150)}:
        if number % 10 and number > 1:
            for form in forms:
                text = form.format(number)
                assert seen.setdefault(tuple(scored_tokens(text)), text) == text


def test_a_runaway_string_of_digits_is_scored():
    """Python converts no more than 4300 digits to a number."""
    assert error_counts("one", "1" * 4500)[0] == error_counts("one", "one " * 4500)[0] == 4499
    assert error_counts("one", f"{'2' * 4500}.5 million")[0] > 4500


def test_digit_strings_are_compared_digit_by_digit():
    draw = random.Random(1)
    for _ in range(150):
        digits = [draw.randrange(10) for _ in range(draw.randint(2, 9))]
        figures, words = "".join(map(str, digits)), " ".join(ONES[digit] for digit in digits)
        assert error_counts(words, figures) == (0, len(digits)) and contains_any(f"it is {words}", [figures])
        place = draw.randrange(len(digits))
        wrong = figures[:place] + str((digits[place] + 1) % 10) + figures[place + 1 :]
        assert error_counts(words, wrong) == (1, len(digits))
        assert digit_error_rate([words], [wrong]).value == 1 / len(digits)
        assert not contains_any(words, [wrong])


@pytest.mark.parametrize(
    "reference, hypothesis, expected",
    [
        ("10 million people", "ten million people", (0, 9)),
        ("10 million people", "10 billion people", (3, 9)),
        ("it costs $10", "it costs ten dollars", (0, 5)),
        ("£10", "10", (1, 3)),
        ("it is -5 outside", "it is 5 outside", (1, 5)),
        ("a 20 mm lens", "a 20 lens", (1, 5)),
        ("a 20 mm lens", "a twenty millimetre lens", (0, 5)),
        ("Johnson & Johnson", "Johnson Johnson", (1, 3)),
        ("USA", "U.S.A.", (0, 1)),
        ("it is 10.05%", "it is ten point zero five percent", (0, 8)),
        ("the twenty-first", "the 21th", (0, 3)),
        ("a naïve $", "a naive", (0, 2)),
        ("iPhone15很贵", "iPhone fifteen 很贵", (0, 4)),
    ],
)
def test_errors_and_lengths(reference, hypothesis, expected):
    assert error_counts(reference, hypothesis) == expected

"""Scoring: what counts as the same text, and rates worked out by hand."""

import math

import pytest

from evaluation.metrics.ours import (
    codebook_perplexity,
    contains_answer,
    digit_error_rate,
    normalise,
    word_error_rate,
)


@pytest.mark.parametrize(
    "spoken, written",
    [
        ("three four five", "345."),
        ("zero one two", "012"),
        ("five four three two", "5,432"),
        ("nine one one", "9-1-1"),
        ("monday the twenty first of june", "Monday, the 21st of June."),
        ("the thirty first of may", "The 31st of May"),
        ("three is the sum of one plus two", "3 is the sum of 1+2."),
        ("three is the sum of one plus two", "Three is the sum of 1 plus 2"),
        ("bakers bake our bread", "Bakers bake our bread!"),
        ("three point one four", "3.14"),
        ("ten point zero five percent", "10.05%"),
    ],
)
def test_the_same_speech_written_differently_is_equal(spoken, written):
    assert normalise(spoken) == normalise(written)


@pytest.mark.parametrize("one, other", [("three four", "four three"), ("zero one", "one"), ("the dog", "the dogs")])
def test_different_speech_stays_different(one, other):
    assert normalise(one) != normalise(other)


def test_word_errors_are_summed_over_all_texts():
    references = ["the dog sleeps in the garden", "one two three"]
    assert word_error_rate(references, references) == 0
    assert word_error_rate(references, ["the dog sleeps in garden", "one two four"]) == pytest.approx(2 / 9)
    assert word_error_rate(references, ["", ""]) == 1
    assert word_error_rate(["yes"], ["yes yes yes"]) == 2


@pytest.mark.parametrize("more", ["(and so on)", "[and so on]", "{and so on}", "<and so on>", "（and so on）"])
def test_what_is_said_in_brackets_is_said(more):
    assert word_error_rate(["yes"], [f"yes {more}"]) == 3
    assert not contains_answer(f"paris {more}", "paris", last_words=2)
    assert word_error_rate(["yes"], ["<|audio|> yes <unk>"]) == 0


def test_an_empty_reference_still_counts_what_was_said():
    assert word_error_rate(["yes", ""], ["yes", "so it is"]) == 3


def test_a_wrong_digit_is_one_error_not_a_wrong_string():
    assert word_error_rate(["three four five six"], ["3457"]) == pytest.approx(1 / 4)
    assert digit_error_rate(["three four five six", "one two"], ["So: 3457", "one"]) == pytest.approx(2 / 6)


@pytest.mark.parametrize("rate", [word_error_rate, digit_error_rate])
def test_rates_refuse_what_has_no_value(rate):
    with pytest.raises(ValueError, match="are all references empty"):
        rate([""], ["one"])
    with pytest.raises(ValueError, match="needs its hypothesis, got 2 and 1"):
        rate(["one", "two"], ["one"])


def test_an_answer_counts_as_whole_words_only():
    assert contains_answer("Paris is the capital of France.", "paris")
    assert contains_answer("It is 12, I think", "twelve")
    assert contains_answer("The answer is New York!", "new york")
    assert not contains_answer("That is artistic", "art")
    assert not contains_answer("York is new", "new york")
    assert not contains_answer("", "paris")
    with pytest.raises(ValueError, match="must have words"):
        contains_answer("anything", " . ")


def test_the_answer_may_be_asked_for_at_the_end():
    wrong = "the day after tuesday is wednesday"
    assert contains_answer(wrong, "tuesday")
    assert not contains_answer(wrong, "tuesday", last_words=2)
    assert contains_answer("the day after monday is tuesday, yes", "tuesday", last_words=2)


def test_perplexity_of_a_codebook():
    assert codebook_perplexity([[0, 1], [2, 3]], 8) == pytest.approx(4)
    assert codebook_perplexity([[5, 5, 5]], 8) == pytest.approx(1)
    assert codebook_perplexity([[0, 0, 0, 1]], 2) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )
    with pytest.raises(ValueError, match="got none"):
        codebook_perplexity([[]], 8)

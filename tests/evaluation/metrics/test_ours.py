"""Scoring: what counts as the same text, rates worked out by hand, answers, samples that must not vanish."""

import json
import math
from pathlib import Path

import pytest

from evaluation.metrics import chinese
from evaluation.metrics.ours import (
    answer_words,
    codebook_perplexity,
    contains_answer,
    contains_any,
    corrected_error_rate,
    digit_error_rate,
    error_counts,
    scored_tokens,
)
from evaluation.metrics.public import reference_containment, reference_error_rate
from evaluation.metrics.score import check_answers

ASSETS = Path(__file__).parents[2] / "assets" / "evaluation"


@pytest.mark.parametrize(
    "reference, hypothesis",
    [
        ("Hello, world! How are you?", "hello world how are you"),
        ("ok. next", "ok next"),
        ("mr. quilter's", "mister quilter's"),
        ("twenty one", "21"),
        ("well-known fact", "well known fact"),
        ("<unk> hello <noise> world", "hello world"),
        ("(parentheses) [brackets]", "parentheses brackets"),
        ("well... yes", "well yes"),
        ("emoji 😀 here", "emoji here"),
        ("naïve café", "naive cafe"),
    ],
)
def test_the_same_words_written_differently_are_no_error(reference, hypothesis):
    assert error_counts(reference, hypothesis)[0] == 0
    assert error_counts(hypothesis, reference)[0] == 0
    if "<" not in reference:
        assert reference_error_rate([reference], [hypothesis]).value > 0


@pytest.mark.parametrize(
    "reference, hypothesis, expected",
    [
        ("the cat sat", "the cat sit", (1, 3)),
        ("a dog", "", (2, 2)),
        ("", "so it is", (3, 0)),
        ("...", "", (0, 0)),
        ("thirty four", "3 5", (1, 2)),
        ("say [it]", "say", (1, 2)),  # what stands in brackets was to be said
    ],
)
def test_errors_and_lengths_by_words(reference, hypothesis, expected):
    assert error_counts(reference, hypothesis) == expected


@pytest.mark.parametrize(
    "reference, hypothesis, errors, length",
    [
        ("今天天气很好。我们去公园！", "今天天气很好我们去公园", 0, 11),
        ("这个价格是100元", "这个价格是一百元", 0, 9),
        ("我愛漢字", "我爱汉字", 0, 4),
        ("全角ＡＢＣ字母", "全角abc字母", 0, 5),
        ("用AI写作", "用ai写作", 0, 4),
        ("A股今天上涨了3%", "a 股今天上涨了百分之三", 0, 11),
        ("三十", "30", 0, 2),
        ("今天天气很好", "今天天气真好", 1, 6),
        ("你好", "你好你好", 2, 2),
        ("你好", "", 2, 2),
        ("（笑）「你好」", "笑你好", 0, 3),
    ],
)
def test_chinese_is_compared_by_characters(reference, hypothesis, errors, length):
    pytest.importorskip("wetext")
    assert error_counts(reference, hypothesis, "zh") == (errors, length)


def test_chinese_needs_its_package(monkeypatch):
    chinese._wetext.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "wetext", None)
    with pytest.raises(ImportError, match=r"Chinese error rate needs the package wetext .*vita-audio\[evaluation-zh\]"):
        corrected_error_rate(["你好"], ["你好"], language="zh")


def test_an_unknown_language_is_named():
    pytest.importorskip("num2words")
    with pytest.raises(ValueError, match="one that num2words knows, got 'xx'"):
        scored_tokens("oui", "xx")


def test_a_rate_is_that_of_all_texts_and_keeps_each():
    score = corrected_error_rate(["the cat sat.", "one", ""], ["the cat", "one", "what"], ids=["a", "b", "c"])
    assert score.numerators.tolist() == [1, 0, 1] and score.denominators.tolist() == [3, 1, 0]
    assert score.value == pytest.approx(2 / 4) and score.ids == ("a", "b", "c")


@pytest.mark.parametrize(
    "text, answer",
    [
        ("The capital of France is Paris.", "Paris"),
        ("There are seven continents", "7"),
        ("There are 7 continents", "seven"),
        ("twenty one days", "21"),
        ("nineteen sixty nine", "1969"),
        ("about 2.5 metres", "two point five"),
        ("five million", "5000000"),
        ("it grew by three percent", "3"),
        ("Carbon dioxide (CO2)", "CO2"),
        ("It is the Nile", "Nile"),
        ("It is Nile", "The Nile"),
        ("They keep dogs.", "a dogs"),
        ("It is vitamin A.", "Vitamin A"),
        ("A.", "a"),
        ("new  york", "New York"),
        ("the answer: O'Neill", "O'Neill"),
        ("北京是中国的首都", "北京"),
    ],
)
def test_answers_that_were_given(text, answer):
    assert contains_any(text, [answer])


@pytest.mark.parametrize(
    "text, answer",
    [
        ("artistic", "art"),
        ("it is 105", "5"),
        ("it is 105", "10"),
        ("York is new", "New York"),
        ("anything", ""),
        ("", ""),
        ("anything", " . "),
        ("", "Paris"),
        ("I don't know", "unknown"),
        ("首都是上海", "北京"),
        ("Vitamin C", "Vitamin A"),
        ("It is a cat", "A"),
    ],
)
def test_answers_that_were_not_given(text, answer):
    assert not contains_any(text, [answer])


def test_an_article_may_be_the_answer():
    assert answer_words("The") == ["the"]


def test_one_right_answer_of_several_is_enough_and_empty_ones_do_not_help():
    assert contains_any("Macbeth", ["Othello", "Macbeth"])
    assert not contains_any("Macbeth", ["", "Hamlet"]) and not contains_any("x", [])


def test_the_two_rules_differ_where_the_reference_is_wrong():
    """Of the golden pairs: numbers in words are found, parts of words, other orders and empty answers are not."""
    pytest.importorskip("word2number")
    pairs = json.loads((ASSETS / "acc_of_contain.json").read_text(encoding="utf-8"))["pairs"]
    texts, answers = [pair["pred"] for pair in pairs], [pair["gt"] for pair in pairs]
    before = reference_containment(texts, answers).numerators
    after = [contains_any(*pair) for pair in zip(texts, check_answers(texts, answers), strict=True)]
    changed = {
        outcome: {text for text, old, new in zip(texts, before, after, strict=True) if (old, new) == outcome}
        for outcome in ((0, 1), (1, 0))
    }
    assert changed[0, 1] == {
        *("There are seven continents", "twenty one days", "nineteen sixty nine", "a hundred and five"),
        *("five million", "7"),
    }
    assert changed[1, 0] == {"Vinci, Leonardo da", "", "anything", "artistic", "York is new"}


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
    assert scored_tokens(spoken) == scored_tokens(written)


@pytest.mark.parametrize("one, other", [("three four", "four three"), ("zero one", "one"), ("the dog", "the dogs")])
def test_different_speech_stays_different(one, other):
    assert scored_tokens(one) != scored_tokens(other)


def test_word_errors_are_summed_over_all_texts():
    references = ["the dog sleeps in the garden", "one two three"]
    assert corrected_error_rate(references, references).value == 0
    assert corrected_error_rate(references, ["the dog sleeps in garden", "one two four"]).value == pytest.approx(2 / 9)
    assert corrected_error_rate(references, ["", ""]).value == 1
    assert corrected_error_rate(["yes"], ["yes yes yes"]).value == 2


@pytest.mark.parametrize("more", ["(and so on)", "[and so on]", "{and so on}", "<and so on>", "（and so on）"])
def test_what_is_said_in_brackets_is_said(more):
    assert corrected_error_rate(["yes"], [f"yes {more}"]).value == 3
    assert not contains_answer(f"paris {more}", "paris", last_words=2)
    assert corrected_error_rate(["yes"], ["<|audio|> yes <unk>"]).value == 0


def test_an_empty_reference_still_counts_what_was_said():
    assert corrected_error_rate(["yes", ""], ["yes", "so it is"]).value == 3


def test_a_wrong_digit_is_one_error_not_a_wrong_string():
    assert corrected_error_rate(["three four five six"], ["3457"]).value == pytest.approx(1 / 4)
    assert digit_error_rate(["three four five six", "one two"], ["So: 3457", "one"]).value == pytest.approx(2 / 6)


@pytest.mark.parametrize("rate", [corrected_error_rate, digit_error_rate])
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

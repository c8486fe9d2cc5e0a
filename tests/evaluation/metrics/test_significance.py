"""Intervals hold the truth as often as they say, and tests call equal runs different as rarely as they say."""

import itertools

import numpy as np
import pytest

from evaluation.metrics.score import Score
from evaluation.metrics.significance import compare, confidence_interval, wilson_interval

TRUE_RATE = 0.12


def sentences(generator: np.random.Generator, num_samples: int) -> Score:
    """Sentences of 3 to 25 words; some are hard, and long ones are no harder than short ones."""
    lengths = generator.integers(3, 26, num_samples)
    difficulty = generator.beta(0.6, 0.6 * (1 - TRUE_RATE) / TRUE_RATE, num_samples)
    return Score(generator.binomial(lengths, difficulty), lengths)


def answers(generator: np.random.Generator, num_samples: int) -> Score:
    return Score.of_mean(generator.random(num_samples) < 0.8)


def coverage(draw, truth: float, num_samples: int, num_sets: int, num_resamples: int) -> float:
    generator = np.random.default_rng(7)
    held = 0
    for seed in range(num_sets):
        low, high = confidence_interval(draw(generator, num_samples), num_resamples=num_resamples, seed=seed)
        held += low <= truth <= high
    return held / num_sets


@pytest.mark.parametrize("draw, truth", [(sentences, TRUE_RATE), (answers, 0.8)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(draw, truth):
    """Of 200 sets 95 % plus or minus 3 standard errors (1.5 % each), and 2 % that a bootstrap of 60 samples lacks."""
    assert 0.885 <= coverage(draw, truth, 60, 200, 300) <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [60, 300])
@pytest.mark.parametrize("draw, truth", [(sentences, TRUE_RATE), (answers, 0.8)])
def test_intervals_hold_the_truth_as_often_as_they_say(draw, truth, num_samples):
    """Of 2000 sets, with a standard error of 0.5 %.

    Small sets of skewed errors are known to lack 2 %. Shares have so few possible values that the interval's end is one
    of them or the next, which is worth another 2 %.
    """
    least, most = (0.93 if num_samples >= 100 else 0.915), (0.98 if draw is answers else 0.965)
    assert least <= coverage(draw, truth, num_samples, 2000, 1000) <= most


def test_a_large_set_has_the_interval_of_the_normal_distribution():
    score = sentences(np.random.default_rng(0), 1000)
    residuals = score.numerators - score.value * score.denominators
    error = np.sqrt((residuals**2).sum()) / score.denominators.sum()
    low, high = confidence_interval(score, num_resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert (low + high) / 2 == pytest.approx(score.value, abs=0.2 * error)


def test_words_decide_not_sentences():
    """One long wrong sentence moves the figure, and with it the interval, more than many short right ones."""
    lengths = np.array([2.0] * 30 + [60.0] * 30)
    errors = np.array([0.0] * 30 + [0.0, 30.0] * 15)
    score = Score(errors, lengths)
    low, high = confidence_interval(score)
    assert score.value == pytest.approx(450 / 1860) and 0.15 < low < 0.2 and 0.3 < high < 0.36


def test_results_depend_on_the_seed_only():
    score, other = (sentences(np.random.default_rng(seed), 50) for seed in (1, 2))
    assert confidence_interval(score, seed=3) == confidence_interval(score, seed=3)
    assert confidence_interval(score, seed=3) != confidence_interval(score, seed=4)
    assert compare(score, other, seed=3) == compare(score, other, seed=3)


def test_many_samples_are_drawn_in_parts_to_the_same_end(monkeypatch):
    score = sentences(np.random.default_rng(1), 40)
    whole = confidence_interval(score, num_resamples=200), compare(score, score, num_resamples=200)
    monkeypatch.setattr("evaluation.metrics.significance.MAX_NUMBERS", 40 * 7)
    assert (confidence_interval(score, num_resamples=200), compare(score, score, num_resamples=200)) == whole


@pytest.mark.parametrize("right, low, high", [(10, 0.7225, 1.0), (0, 0.0, 0.2775)])
def test_ten_of_ten_right_is_not_certainty(right, low, high):
    score = Score.of_mean([right > 0] * 10)
    assert confidence_interval(score) == pytest.approx((low, high), abs=5e-5)
    assert confidence_interval(score, is_share=False) == (score.value, score.value)


def test_the_interval_of_a_share_is_wilsons():
    """Wilson 1927, by his formula: 8 of 10 at 95 %."""
    assert wilson_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_figures_that_are_all_the_same_have_no_spread():
    assert confidence_interval(Score([3, 6], [2, 4])) == (1.5, 1.5)


def test_no_errors_in_few_sentences_is_not_certainty_either():
    low, high = confidence_interval(Score([0, 0, 0, 0], [5, 9, 2, 7]))
    assert low == 0 and high == pytest.approx(0.4899, abs=5e-5)


def test_p_values_are_those_of_all_swaps():
    """For ten samples all 1024 swaps can be counted; the drawn ones come close (standard error 0.4 %)."""
    generator = np.random.default_rng(5)
    one, other = sentences(generator, 10), sentences(generator, 10)
    other = Score(other.numerators * one.denominators / other.denominators, one.denominators)
    seen = abs(one.value - other.value)
    gaps = one.numerators - other.numerators
    swapped = [
        abs(float(np.dot(signs, gaps))) / one.denominators.sum() >= seen - 1e-12
        for signs in itertools.product((1, -1), repeat=10)
    ]
    result = compare(one, other, num_resamples=10_000)
    assert result.p_value == pytest.approx(np.mean(swapped), abs=0.015)
    assert result.difference == pytest.approx(one.value - other.value)


def test_equal_runs_are_rarely_called_different_and_better_ones_mostly():
    generator = np.random.default_rng(11)
    p_values = {"equal": [], "better": []}
    for seed in range(150):
        lengths = generator.integers(3, 26, 60)
        difficulty = generator.beta(0.6, 4.4, 60)
        one, other, worse = (
            Score(generator.binomial(lengths, np.minimum(difficulty * factor, 1)), lengths) for factor in (1, 1, 1.8)
        )
        p_values["equal"].append(compare(one, other, num_resamples=200, seed=seed).p_value)
        p_values["better"].append(compare(one, worse, num_resamples=200, seed=seed).p_value)
    assert np.mean(np.array(p_values["equal"]) <= 0.05) <= 0.05 + 3 * 0.018
    assert np.mean(np.array(p_values["better"]) <= 0.05) >= 0.8


def test_pairing_finds_what_two_intervals_hide():
    generator = np.random.default_rng(2)
    hard = generator.random(200) < 0.5
    one, other = Score.of_mean(hard), Score.of_mean(hard | (generator.random(200) < 0.08))
    result = compare(one, other)
    assert confidence_interval(one)[1] > confidence_interval(other)[0]
    assert result.high < 0 and result.p_value < 0.05


def test_samples_are_matched_by_their_ids():
    one = Score([1, 0, 0], [5, 6, 7], ids=("a", "b", "c"))
    other = Score([0, 0, 1], [7, 6, 5], ids=("c", "b", "a"))
    result = compare(one, other)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_runs_of_other_samples_are_not_compared():
    one = Score([1, 0], [5, 6], ids=("a", "b"))
    with pytest.raises(ValueError, match="same samples to be compared, got only in one: b, c"):
        compare(one, Score([1, 0], [5, 6], ids=("a", "c")))
    with pytest.raises(ValueError, match="ids in one only"):
        compare(one, Score([1, 0], [5, 6]))
    with pytest.raises(ValueError, match="got 2 and 3"):
        compare(Score([1, 0], [5, 6]), Score([1, 0, 1], [5, 6, 7]))

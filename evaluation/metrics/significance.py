"""Confidence intervals of metrics, and paired tests of two runs: resampling over samples with fixed seeds.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (BCa intervals, chapter 14); Bisani and Ney,
Bootstrap estimates for confidence intervals in ASR performance evaluation, 2004 (error rates as ratios of sums).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from evaluation.metrics.score import Score, check_same_length, shorten

LEVEL = 0.95
NUM_RESAMPLES = 2000
MAX_NUMBERS = 1 << 22  # drawn at a time: 32 MiB
NORMAL = NormalDist()


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two runs on the same samples.

    Attributes:
        low: Lower end of the interval of the difference, by a paired bootstrap.
        high: Upper end.
        p_value: Two-sided p-value of a permutation test.
    """

    difference: float
    low: float
    high: float
    level: float
    p_value: float
    num_samples: int


def confidence_interval(
    score: Score, *, is_share: bool = True, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a score, by a bias-corrected and accelerated bootstrap over its samples.

    If no sample has an error, or every sample is entirely wrong, a bootstrap would give a point. The interval of a
    share is then the Wilson interval of the share of such samples; for an error rate this assumes that a sample with
    errors is wrong as a whole.
    """
    value, num_samples = score.value, len(score)
    residuals = score.numerators - value * score.denominators
    if value in (0.0, 1.0) and not residuals.any():
        return wilson_interval(value, num_samples) if is_share else (value, value)
    ratios = np.concatenate([_ratio(counts, score) for counts in _draws(num_samples, num_resamples, seed)])
    low, high = np.quantile(ratios, _bca_levels(ratios, score))
    return float(low), float(high)


def wilson_interval(share: float, num_samples: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share of samples; it lies within 0 and 1 and is never a point."""
    z = NORMAL.inv_cdf((1 + LEVEL) / 2)
    centre = (share + z * z / (2 * num_samples)) / (1 + z * z / num_samples)
    spread = z * np.sqrt(share * (1 - share) / num_samples + (z / (2 * num_samples)) ** 2) / (1 + z * z / num_samples)
    return max(0.0, float(centre - spread)), min(1.0, float(centre + spread))


def compare(one: Score, other: Score, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Comparison:
    """Return the difference of two runs on the same samples, with its interval and p-value.

    The permutation test swaps the results of the two runs sample by sample; the p-value is at least
    1 / (num_resamples + 1).
    Raises: ValueError if the runs have different samples.
    """
    other = _in_order_of(one, other)
    difference, num_samples = one.value - other.value, len(one)
    draws = _draws(num_samples, num_resamples, seed)
    differences = np.concatenate([_ratio(counts, one) - _ratio(counts, other) for counts in draws])
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    as_large = sum(
        int((np.abs(swapped) >= abs(difference) - 1e-12).sum()) for swapped in _swaps(one, other, num_resamples, seed)
    )
    p_value = (1 + as_large) / (1 + num_resamples)
    return Comparison(difference, float(low), float(high), LEVEL, p_value, num_samples)


def _chunks(num_samples: int, num_resamples: int) -> Iterator[int]:
    chunk = max(1, MAX_NUMBERS // num_samples)
    for start in range(0, num_resamples, chunk):
        yield min(chunk, num_resamples - start)


def _draws(num_samples: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each resample contains each sample, (some resamples, samples)."""
    generator = np.random.default_rng(seed)
    for size in _chunks(num_samples, num_resamples):
        yield generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=size)


def _ratio(counts: np.ndarray, score: Score) -> np.ndarray:
    """Return the scores of resamples, (resamples,); a resample with a zero denominator gets the score of the whole."""
    sizes = counts @ score.denominators
    return np.where(sizes > 0, (counts @ score.numerators) / np.where(sizes > 0, sizes, 1.0), score.value)


def _bca_levels(ratios: np.ndarray, score: Score) -> np.ndarray:
    """Return the quantiles of resampled ratios that bound the interval: (low, high)."""
    below = np.mean(ratios < score.value) + np.mean(ratios == score.value) / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 1 / len(ratios), 1 - 1 / len(ratios))))
    rest = score.denominators.sum() - score.denominators
    left_out = np.where(rest > 0, (score.numerators.sum() - score.numerators) / np.where(rest > 0, rest, 1.0), 0.0)
    known = left_out[rest > 0]  # empty for a single sample
    influence = known.mean() - known if len(known) else known
    spread = (influence**2).sum()
    acceleration = (influence**3).sum() / (6 * spread**1.5) if spread else 0.0
    bounds = [bias + NORMAL.inv_cdf(tail) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)]
    return np.array([NORMAL.cdf(bias + bound / (1 - acceleration * bound)) for bound in bounds])


def _swaps(one: Score, other: Score, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield differences after swapping the two results of a random half of the samples, (some resamples,)."""
    generator = np.random.default_rng(seed)
    for size in _chunks(len(one), num_resamples):
        swapped = generator.integers(0, 2, size=(size, len(one)))
        numerators, denominators = (
            (mine.sum() + swapped @ (theirs - mine), theirs.sum() + swapped @ (mine - theirs))
            for mine, theirs in ((one.numerators, other.numerators), (one.denominators, other.denominators))
        )
        with np.errstate(divide="ignore", invalid="ignore"):  # all samples with a size may be on one side
            differences = numerators[0] / denominators[0] - numerators[1] / denominators[1]
        yield np.nan_to_num(differences, nan=np.inf)


def _in_order_of(one: Score, other: Score) -> Score:
    """Return the second score with its samples in the order of the first."""
    if (one.ids is None) != (other.ids is None):
        raise ValueError("both scores need ids to be compared, or neither, got ids in one only")
    if one.ids is None:
        check_same_length("sample of one run", len(one), "result in the other", len(other))
        return other
    if odd := sorted(set(one.ids) ^ set(other.ids)):
        raise ValueError(f"two runs must have the same samples to be compared, got only in one: {shorten(odd)}")
    place = {name: index for index, name in enumerate(other.ids)}
    order = [place[name] for name in one.ids]
    return Score(other.numerators[order], other.denominators[order], one.ids)

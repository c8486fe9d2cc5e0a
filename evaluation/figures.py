"""Which metrics decide what an answer is worth: ours, and beside them those of the public evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from evaluation.answers import KEYWORD_LEEWAY
from evaluation.metrics.ours import contains_answer, contains_any, corrected_error_rate, normalise
from evaluation.metrics.public import (
    libritts_error_rate,
    reference_containment,
    reference_error_rate,
    seedtts_error_rate,
)
from evaluation.metrics.score import Score
from evaluation.metrics.significance import confidence_interval
from evaluation.metrics.speech import LOWEST_MOS, NO_SIMILARITY
from evaluation.suites import Benchmark, Item

TEXT, TRANSCRIPT = "text", "transcript"  # what the model wrote; what a judge understood of its speech
CHARACTER_LANGUAGES = ("zh",)  # in which a word is a character
REFERENCE_RULES: dict[str, Callable[..., Score]] = {
    "words": reference_error_rate,
    "characters": partial(reference_error_rate, unit="character"),
    "libritts": libritts_error_rate,
    "seedtts zh": partial(seedtts_error_rate, language="zh"),
    "seedtts en": partial(seedtts_error_rate, language="en"),
    "contains": reference_containment,
}

WITHOUT_AUDIO = "without_audio"
SIMILARITY, MOS = "similarity", "mos"
MEASURES = {SIMILARITY: "likeness of voice", MOS: "predicted MOS"}  # of speech, if asked for
WORST_MEASURES = {SIMILARITY: NO_SIMILARITY, MOS: LOWEST_MOS}
SPEEDS = {
    "tokens_per_second": "tokens/s",
    "passes_per_token": "backbone passes per token",
    "real_time_factor": "real-time factor",
    "tokens_per_answer": "tokens per answer",
    "seconds_per_answer": "seconds of speech per answer",
}

Rate = Callable[[Sequence[str], Sequence[Item], Benchmark], Score]


@dataclass(frozen=True)
class Figure:
    """A rate over samples.

    Attributes:
        name: Key in the results; {errors} is wer or cer, by the language.
        title: Column of a table.
        source: Which form of the answer it looks at.
        rate: Scores what was said to items.
        of_reference: By the benchmark's rule in the public evaluation; a benchmark without one lacks the figure.
    """

    name: str
    title: str
    source: str
    rate: Rate
    more_is_better: bool = False
    of_reference: bool = False

    def key(self, language: str) -> str:
        return self.name.format(errors="cer" if language in CHARACTER_LANGUAGES else "wer")


@dataclass(frozen=True)
class Value:
    """A figure and its 95 % interval; `is_share`: it is shown in per cent."""

    value: float
    low: float
    high: float
    is_share: bool

    @classmethod
    def of(cls, key: str, score: Score) -> Value:
        interval, is_share = confidence_interval(score), key not in MEASURES and key not in SPEEDS
        if interval.method == "wilson" and not is_share:  # samples are not right or wrong, but all alike
            return cls(interval.value, interval.value, interval.value, is_share)
        return cls(interval.value, interval.low, interval.high, is_share)

    def __str__(self) -> str:
        if self.is_share:
            return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"
        value, low, high = (f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def errors(said: Sequence[str], items: Sequence[Item], benchmark: Benchmark) -> Score:
    references = [item.references[0] for item in items]
    return corrected_error_rate(references, said, language=benchmark.language, ids=[item.id for item in items])


def rightness(said: Sequence[str], items: Sequence[Item], benchmark: Benchmark) -> Score:
    outcomes = [_is_right(text, item) for text, item in zip(said, items, strict=True)]
    return Score.of_mean(outcomes, [item.id for item in items])


def _is_right(text: str, item: Item) -> bool:
    """Say whether an answer is in the text, or at its end where that is asked for."""
    if not item.keyword_last:
        return contains_any(text, item.references)
    (keyword,) = item.references
    return contains_answer(text, keyword, len(normalise(keyword).split()) + KEYWORD_LEEWAY)


def errors_of_reference(said: Sequence[str], items: Sequence[Item], benchmark: Benchmark) -> Score:
    references, ids = [item.references[0] for item in items], [item.id for item in items]
    return REFERENCE_RULES[benchmark.rule](references, said, ids=ids)


def rightness_of_reference(said: Sequence[str], items: Sequence[Item], benchmark: Benchmark) -> Score:
    answers, ids = [list(item.references) for item in items], [item.id for item in items]
    return REFERENCE_RULES[benchmark.rule](said, answers, ids=ids)


def error_figures(source: str, title: str) -> tuple[Figure, Figure]:
    return (
        Figure("{errors}", title, source, errors),
        Figure("{errors}_reference", f"{title}, public rule", source, errors_of_reference, of_reference=True),
    )


def accuracy_figures(name: str, title: str, source: str) -> tuple[Figure, Figure]:
    return (
        Figure(name, title, source, rightness, more_is_better=True),
        Figure(
            f"{name}_reference",
            f"{title}, public rule",
            source,
            rightness_of_reference,
            more_is_better=True,
            of_reference=True,
        ),
    )


def speed_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """Return speed and length by the key of SPEEDS, of the runner's rows; what cannot be told is absent."""
    ids = [row["id"] for row in rows]

    def column(name: str) -> list[float]:
        return [row.get(name, 0) for row in rows]

    tokens, speech = column("num_tokens"), column("speech_seconds")
    ratios = {
        "tokens_per_second": (tokens, column("generate_seconds")),
        "passes_per_token": (column("num_backbone_passes"), tokens),
        "real_time_factor": (column("total_seconds"), speech),
    }
    scores = {key: Score(*sums, ids) for key, sums in ratios.items() if sum(sums[1])}
    scores["tokens_per_answer"] = Score.of_mean(tokens, ids)
    if sum(speech):
        scores["seconds_per_answer"] = Score.of_mean(speech, ids)
    return scores


def measured(measures: Sequence[Mapping[str, float]], ids: Sequence[str]) -> dict[str, Score]:
    """Return the means of what was measured of samples' speech; one without speech has the worst value there is."""
    names = [name for name in MEASURES if any(name in values for values in measures)]
    return {name: Score.of_mean([values.get(name, WORST_MEASURES[name]) for values in measures], ids) for name in names}

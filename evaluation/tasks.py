"""Tasks and the metrics that score them: ours, and next to them those of the public evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from evaluation.judges import LOWEST_MOS, NO_SIMILARITY
from evaluation.metrics.ours import (
    TOKENIZERS,
    contains_answer,
    contains_any,
    corrected_error_rate,
    scored_tokens,
    without_tags,
)
from evaluation.metrics.public import (
    libritts_error_rate,
    reference_containment,
    reference_error_rate,
    seedtts_error_rate,
)
from evaluation.metrics.score import Score
from evaluation.metrics.significance import confidence_interval
from evaluation.metrics.spoken_numbers import words_and_numbers
from evaluation.suites import ASR, SPOKEN_QA, TEXT_QA, TTS, Benchmark, Item

TEXT, TRANSCRIPT = "text", "transcript"  # the model's text output; the judge's transcript of its speech
KEYWORD_LEEWAY = 1  # words that may follow the keyword of an answer
PUBLIC_RULES: dict[str, Callable[..., Score]] = {
    "words": reference_error_rate,
    "characters": partial(reference_error_rate, unit="character"),
    "libritts": libritts_error_rate,
    "seedtts zh": partial(seedtts_error_rate, language="zh"),
    "seedtts en": partial(seedtts_error_rate, language="en"),
    "contains": reference_containment,
}

WITHOUT_AUDIO = "without_audio"
SIMILARITY, MOS = "similarity", "mos"
MEASURES = {SIMILARITY: "voice similarity", MOS: "predicted MOS"}  # of speech; computed on request
WORST_MEASURES = {SIMILARITY: NO_SIMILARITY, MOS: LOWEST_MOS}
PASSES_PER_TOKEN, TOKENS_PER_PASS, SPEED_ALONE = "passes_per_token", "tokens_per_pass", "tokens_per_second_alone"
SPEEDS = {
    "tokens_per_second": "tokens/s",
    SPEED_ALONE: "tokens/s, one at a time",
    PASSES_PER_TOKEN: "backbone passes per token",
    TOKENS_PER_PASS: "tokens per backbone pass",
    "real_time_factor": "real-time factor",
    "tokens_per_answer": "tokens per answer",
    "seconds_per_answer": "seconds of speech per answer",
}

Rate = Callable[[Sequence[str], Sequence[Item], Benchmark], Score]


@dataclass(frozen=True)
class Metric:
    """A rate over samples.

    Attributes:
        name: Key in the results, for `Benchmark.key`.
        title: Table column.
        source: The form of the answer that is scored, TEXT or TRANSCRIPT.
        rate: Function that scores answers to items.
        is_public: Scored by the benchmark's rule in the public evaluation; absent for a benchmark without one.
    """

    name: str
    title: str
    source: str
    rate: Rate
    more_is_better: bool = False
    is_public: bool = False


@dataclass(frozen=True)
class Value:
    """A metric's value and its 95 % interval; `is_share`: shown in per cent."""

    value: float
    low: float
    high: float
    is_share: bool

    @classmethod
    def of(cls, key: str, score: Score) -> Value:
        """Return the value of a score; `key` is the metric's key in the results."""
        is_share = key not in MEASURES and key not in SPEEDS
        return cls(score.value, *confidence_interval(score, is_share=is_share), is_share)

    def __str__(self) -> str:
        if self.is_share:
            return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"
        value, low, high = (f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def errors(said: Sequence[str], items: Sequence[Item], benchmark: Benchmark) -> Score:
    """Return the word or character error rate."""
    references = [item.references[0] for item in items]
    return corrected_error_rate(references, said, language=benchmark.language, ids=[item.id for item in items])


def rightness(said: Sequence[str], items: Sequence[Item], benchmark: Benchmark) -> Score:
    """Return the share of right answers."""
    outcomes = [is_right(text, item, benchmark.language) for text, item in zip(said, items, strict=True)]
    return Score.of_mean(outcomes, [item.id for item in items])


def is_right(text: str, item: Item, language: str = "en") -> bool:
    """Return whether a text contains one of the accepted answers, or ends with it if the item asks for that."""
    if not item.keyword_last:
        return contains_any(text, item.references)
    (keyword,) = item.references
    if language not in TOKENIZERS:
        words, wanted = (words_and_numbers(without_tags(part), language) for part in (text, keyword))
        if not wanted:
            raise ValueError(f"an answer to look for must have words, got {keyword!r}")
        last = words[-(len(wanted) + KEYWORD_LEEWAY) :]
        return any(last[start : start + len(wanted)] == wanted for start in range(KEYWORD_LEEWAY + 1))
    return contains_answer(text, keyword, len(scored_tokens(keyword)) + KEYWORD_LEEWAY)


def public_score(said: Sequence[str], items: Sequence[Item], benchmark: Benchmark) -> Score:
    """Return the error rate or the share of right answers by the rule of the public evaluation."""
    ids, rule = [item.id for item in items], PUBLIC_RULES[benchmark.rule]
    if rule is reference_containment:
        return rule(said, [item.references for item in items], ids=ids)
    return rule([item.references[0] for item in items], said, ids=ids)


def _metrics(name: str, title: str, source: str, rate: Rate) -> tuple[Metric, Metric]:
    """Return a metric, and the same by the public rule."""
    own = Metric(name, title, source, rate, more_is_better=rate is rightness)
    public = {"name": f"{name}_reference", "title": f"{title}, public rule", "rate": public_score, "is_public": True}
    return own, replace(own, **public)


@dataclass(frozen=True)
class Task:
    """A task of a benchmark; `speaks`: the answer is synthesised and transcribed by a judge."""

    title: str
    speaks: bool
    metrics: tuple[Metric, ...]

    @property
    def own_metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if not metric.is_public)


_SPOKEN_ANSWERS = (
    *_metrics("accuracy_text", "right, S→T", TEXT, rightness),
    *_metrics("accuracy_speech", "right, S→S", TRANSCRIPT, rightness),
)
TASKS = {
    ASR: Task("Recognition", False, _metrics("{errors}", "errors", TEXT, errors)),
    TTS: Task("Synthesis", True, _metrics("{errors}", "errors heard", TRANSCRIPT, errors)),
    SPOKEN_QA: Task("Spoken questions", True, _SPOKEN_ANSWERS),
    TEXT_QA: Task("The same questions as text", False, _metrics("accuracy", "right, T→T", TEXT, rightness)),
}


def speed_scores(rows: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]] = ()) -> dict[str, Score]:
    """Return speed and length by the keys of SPEEDS; those that cannot be computed are absent.

    Args:
        rows: The runner's answers.
        alone: Its rows of answers generated one at a time.
    """
    ids = [row["id"] for row in rows]

    def column(name: str) -> list[float]:
        return [row.get(name, 0) for row in rows]

    tokens, speech = column("num_tokens"), column("speech_seconds")
    ratios = {
        "tokens_per_second": (tokens, column("generate_seconds")),
        PASSES_PER_TOKEN: (column("num_backbone_passes"), tokens),
        TOKENS_PER_PASS: (tokens, column("num_backbone_passes")),
        "real_time_factor": (column("total_seconds"), speech),
    }
    scores = {key: Score(*sums, ids) for key, sums in ratios.items() if sum(sums[1])}
    scores["tokens_per_answer"] = Score.of_mean(tokens, ids)
    if sum(speech):
        scores["seconds_per_answer"] = Score.of_mean(speech, ids)
    if alone := [row for row in alone if "error" not in row]:
        sums = ([row[name] for row in alone] for name in ("num_tokens", "generate_seconds"))
        scores[SPEED_ALONE] = Score(*sums, [row["id"] for row in alone])
    return scores


def acceptance_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """Return by depth the share of verified predictions that the backbone accepted; empty without verification.

    Args:
        rows: The runner's answers.
    """
    verified, accepted = ([row.get(name, ()) for row in rows] for name in ("num_verified", "num_accepted"))
    ids, num_depths = [row["id"] for row in rows], max(map(len, verified), default=0)

    def column(counts: Sequence[Sequence[int]], depth: int) -> list[int]:
        return [row[depth] if depth < len(row) else 0 for row in counts]

    columns = {depth: (column(accepted, depth), column(verified, depth)) for depth in range(1, num_depths)}
    return {str(depth): Score(*sums, ids) for depth, sums in columns.items() if any(sums[1])}


def measured(measures: Sequence[Mapping[str, float]], ids: Sequence[str]) -> dict[str, Score]:
    """Return the mean of each measure; a sample without speech gets the worst possible value."""
    names = [name for name in MEASURES if any(name in values for values in measures)]
    return {name: Score.of_mean([values.get(name, WORST_MEASURES[name]) for values in measures], ids) for name in names}

"""The outcomes of one run of the demo suite: metrics, scores and errors by title."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evaluation.metrics.score import Score
from evaluation.results import Outcome
from evaluation.tasks import Metric, Value


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of several benchmarks in one mode, with our own metrics by title."""

    outcomes: Sequence[Outcome]

    def metrics(self) -> Iterator[tuple[str, Metric, Outcome]]:
        """Yield the title, the metric and the outcome for each of our own metrics."""
        for outcome in self.outcomes:
            for metric in outcome.task.own_metrics:
                yield f"{outcome.task.title}: {metric.title}", metric, outcome

    def values(self) -> dict[str, Value]:
        return {title: one.metrics[one.benchmark.key(metric.name)] for title, metric, one in self.metrics()}

    def scores(self) -> dict[str, Score]:
        return {title: one.scores[one.benchmark.key(metric.name)] for title, metric, one in self.metrics()}

    def errors(self) -> dict[str, tuple[float, float, float]]:
        """Return the error rate and its interval, by title."""
        errors, values = {}, self.values()
        for title, metric, _ in self.metrics():
            value, low, high = values[title].value, values[title].low, values[title].high
            bounds = (1 - value, 1 - high, 1 - low) if metric.more_is_better else (value, low, high)
            errors[title.replace("right", "wrong")] = bounds
        return errors

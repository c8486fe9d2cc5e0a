"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vita_audio.serve.scheduler import Scheduler

LATENCY_BUCKETS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 30)  # seconds
FACTOR_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 5)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, scheduler: Scheduler, count_sessions: Callable[[], int]):
        registry = self.registry = CollectorRegistry()
        self.first_audio = Histogram(
            "vita_audio_first_audio_seconds",
            "From the end of speech, or from the request, to the first audio",
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        self.real_time_factor = Histogram(
            "vita_audio_real_time_factor", "Work per second of audio", registry=registry, buckets=FACTOR_BUCKETS
        )
        self.answers = Counter("vita_audio_answers", "Answers by outcome", ["outcome"], registry=registry)
        self.early_answers = Counter(
            "vita_audio_early_answers", "Answers begun in a pause, by outcome", ["outcome"], registry=registry
        )
        self.errors = Counter("vita_audio_errors", "Errors reported to clients", ["code"], registry=registry)
        for name, help_text, value in (
            ("vita_audio_sessions", "Open realtime sessions", count_sessions),
            ("vita_audio_streams", "Answers being generated", lambda: scheduler.num_active),
            ("vita_audio_queue", "Answers waiting", lambda: scheduler.num_waiting),
        ):
            Gauge(name, help_text, registry=registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

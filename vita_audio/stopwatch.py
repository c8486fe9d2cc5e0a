"""Seconds of work by stage; the caller owns them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopwatch:
    """Sums up the seconds of each stage of some work.

    Attributes:
        seconds: Stage -> seconds so far. A streamed answer has the stages "prompt", "language_model", "flow" and
            "vocoder"; a codec without a flow has only the last.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter):
        """Begin at zero; `clock` returns seconds, such as `time.process_time` for seconds of CPU time."""
        self.clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str, device: torch.device | None = None) -> Iterator[None]:
        """Add the time inside the block to a stage, up to the end of the work that it starts on a GPU `device`."""
        start = self.clock()
        try:
            yield
        finally:
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + self.clock() - start

    def measure_each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and add the time that making them takes to a stage."""
        items, end = iter(items), object()
        while True:
            with self.measure(stage):
                item = next(items, end)
            if item is end:
                return
            yield item

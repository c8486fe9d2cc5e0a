"""Map a function over items in worker processes, in order and with only a few items in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import Any

import torch

_CHUNKS_PER_WORKER = 4  # chunks in flight, so that no worker waits for the reader

_worker_function: Callable[[Any], Any]  # set once when a worker process starts


def map_ordered(
    make_function: Callable[[int], Callable[[Any], Any]], items: Iterable[Any], num_workers: int, *, chunk_size: int = 8
) -> Iterator[Any]:
    """Yield `function(item)` in the order of `items`; results do not depend on `num_workers`.

    Args:
        make_function: Picklable; each worker calls it once, with its rank (from 0), to make the function.
        num_workers: Number of processes; 0 works in the calling process.
        chunk_size: Number of items sent to a worker at a time.
    Raises: Exceptions of the workers; BrokenProcessPool if a worker dies.
    """
    if num_workers == 0:
        yield from map(make_function(0), items)
        return
    context = get_context("spawn")  # CUDA and threads do not survive a fork
    ranks = context.Value("i", 0)
    iterator = iter(items)
    in_flight: deque = deque()
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (make_function, ranks))
    try:
        while True:
            while len(in_flight) < num_workers * _CHUNKS_PER_WORKER and (chunk := list(islice(iterator, chunk_size))):
                in_flight.append(pool.submit(_run_chunk, chunk))
            if not in_flight:
                return
            yield from in_flight.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(make_function: Callable[[int], Callable[[Any], Any]], ranks: Any) -> None:
    global _worker_function
    torch.set_num_threads(1)  # the workers share the cores
    with ranks.get_lock():
        rank, ranks.value = ranks.value, ranks.value + 1
    _worker_function = make_function(rank)


def _run_chunk(chunk: list[Any]) -> list[Any]:
    return [_worker_function(item) for item in chunk]

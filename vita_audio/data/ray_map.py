"""Map a function over items on a Ray cluster, with Ray Data, which replaces workers that die."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vita_audio.optional import require

_BATCH_SIZE = 8


class _Worker:
    """An actor: makes its function once, then applies it to pickled items."""

    def __init__(self, make_function: Callable[[int], Callable[[Any], Any]]):
        self._function = make_function(0)  # the rank: Ray gives each actor a GPU of its own, which is the first it sees

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"item": [pickle.dumps(self._function(pickle.loads(item))) for item in batch["item"]]}


def map_with_ray(
    make_function: Callable[[int], Callable[[Any], Any]], items: Iterable[Any], num_workers: int, *, num_gpus: int = 0
) -> Iterator[Any]:
    """Yield `function(item)` in the order of `items`, like `map_ordered`.

    Joins the cluster of the environment variable RAY_ADDRESS, or else starts Ray on this machine.

    Args:
        make_function: Picklable; each worker calls it once, with 0, to make the function.
        num_workers: Number of actors.
        num_gpus: GPUs of each actor.
    Raises: MissingPackageError without Ray; exceptions of the workers.
    """
    ray = require("ray", purpose="--ray", install='"vita-audio[ray]"')
    rows = [{"item": pickle.dumps(item)} for item in items]
    if not rows:
        return
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": num_workers + 1, "include_dashboard": False}
    with ray.init(address=address or "local", log_to_driver=False, **local):
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        num_blocks = -(-len(rows) // _BATCH_SIZE)
        results = ray.data.from_items(rows, override_num_blocks=num_blocks).map_batches(
            _Worker,
            fn_constructor_args=(make_function,),
            batch_size=_BATCH_SIZE,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            num_gpus=num_gpus,
        )
        for row in results.iter_rows():
            yield pickle.loads(row["item"])

"""Progress bars of processes that work side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return a bar of tqdm; each process that torchrun starts on a machine has a line of its own."""
    return tqdm(items, position=int(os.environ.get("LOCAL_RANK", 0)), **options)

"""Messages of libraries in C, such as libmpg123 about a damaged MP3: they write to stderr and do not name the file."""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from tqdm import tqdm

MAX_LENGTH = 200  # characters

Item = TypeVar("Item")


@contextmanager
def named_messages(name: str) -> Iterator[None]:
    """Put a name before what this process writes to the file descriptor of stderr meanwhile, in one line, once.

    Not for a process that writes to it from other threads at the same time.
    """
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
            file.seek(0)
            lines = file.read().decode(errors="replace").split("\n")
            text = " ".join(line.strip() for line in lines if "\r" not in line)  # which a progress bar writes
            if text := text.strip():
                _tell(name, text[:MAX_LENGTH])


def read_with_name(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, with `named_messages` while each is read, but not while the caller uses it."""
    iterator, end = iter(items), object()
    while True:
        with named_messages(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item


@cache  # a file may be read more than once
def _tell(name: str, text: str) -> None:
    tqdm.write(f"{name}: {text}", file=sys.stderr)

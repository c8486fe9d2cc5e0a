"""Messages of libraries in C, such as libmpg123 about a damaged MP3: they write to stderr and do not name the file."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from tqdm import tqdm

MAX_LENGTH = 200  # characters


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
            text = " ".join(file.read().decode(errors="replace").split())
    if text:
        _tell(name, text[:MAX_LENGTH])


@cache  # a file may be read more than once
def _tell(name: str, text: str) -> None:
    tqdm.write(f"{name}: {text}", file=sys.stderr)

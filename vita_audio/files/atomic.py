"""Write files and folders atomically, so that those that exist are complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path` to write to, and move it to `path` when the block succeeds.

    The folder is created if needed. If the block raises, the temporary file is removed and `path` does not change.
    Several processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder next to `path` to fill, and move it to `path` when the block succeeds.

    If another process has made `path` in the meantime, its folder is kept. If the block raises, nothing remains.
    """
    partial = path.with_name(f".{path.name}-{uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            os.rename(partial, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, UTF-8, atomically. Raises: TypeError if `value` is not serialisable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

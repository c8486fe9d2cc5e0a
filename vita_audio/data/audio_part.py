"""Audio that is only a part of a file, named by a fragment after the path, so that archives are read in place.

    shard.tar#bytes=1536,20480           the file that begins at byte 1536 of an archive and has 20,480 bytes
    train.parquet#row=12&column=audio    the file in a cell of a table, rows counted from 0
    talk.mp3#t=12.3,17.85                a recording from second 12.3 to second 17.85, as in W3C Media Fragments
    shard.tar#bytes=1536,20480&t=0.5,3   both

A path without a fragment is a whole file, and so is a path that exists exactly as written.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_NUMBER = r"\d+(?:\.\d+)?"
_FRAGMENT = re.compile(
    r"(?P<file>.+)#(?=.)(?:bytes=(?P<offset>\d+),(?P<size>\d+)|row=(?P<row>\d+)&column=(?P<column>[^&/]+))?"
    rf"(?:(?:(?<=#)|(?<!#)&)t=(?P<start>{_NUMBER}),(?P<end>{_NUMBER}))?",
    re.DOTALL,
)


@dataclass(frozen=True)
class AudioPart:
    """A whole file, or the part of it that holds the audio.

    Attributes:
        file: Path of the file.
        span: First byte and number of bytes.
        cell: Row and column of a parquet file.
        seconds: Start and end within the audio.
    """

    file: str
    span: tuple[int, int] | None = None
    cell: tuple[int, str] | None = None
    seconds: tuple[float, float] | None = None

    @classmethod
    def parse(cls, path: str | Path) -> AudioPart:
        """Split a path from its fragment; any text without a valid fragment is the path of a whole file."""
        path = str(path)
        match = _FRAGMENT.fullmatch(path) if "#" in path else None
        if match is None or os.path.exists(path):
            return cls(path)
        file, offset, size, row, column, start, end = match.groups()
        return cls(
            file,
            span=None if offset is None else (int(offset), int(size)),
            cell=None if row is None else (int(row), column),
            seconds=None if start is None else (float(start), float(end)),
        )

    def __str__(self) -> str:
        parts = [f"bytes={self.span[0]},{self.span[1]}"] if self.span else []
        parts += [f"row={self.cell[0]}&column={self.cell[1]}"] if self.cell else []
        parts += [f"t={self.seconds[0]:.3f},{self.seconds[1]:.3f}"] if self.seconds else []
        return "#".join([self.file, "&".join(parts)]) if parts else self.file

    @contextmanager
    def open(self) -> Iterator[str | BinaryIO]:
        """Yield what soundfile opens: the path of a file, or a stream of the bytes inside one.

        Raises: OSError; ValueError if the file has no such bytes or cell.
        """
        if self.cell:
            yield io.BytesIO(_read_cell(self.file, *self.cell))
        elif self.span:
            with _FileSpan(self.file, *self.span) as span, io.BufferedReader(span) as stream:
                yield stream
        else:
            yield self.file


class _FileSpan(io.RawIOBase):
    """The bytes `offset:offset + size` of a file as a file of its own. Raises: ValueError if the file is shorter."""

    def __init__(self, path: str, offset: int, size: int):
        if os.path.getsize(path) < offset + size:
            raise ValueError(f"the file ends before byte {offset + size}")
        self._file = open(path, "rb", buffering=0)
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._position)])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_cell(path: str, row: int, column: str) -> bytes:
    """Return a cell that holds a file, as bytes or as the audio of the package datasets. Raises: ValueError."""
    stat = os.stat(path)
    version = (path, stat.st_size, stat.st_mtime_ns)
    file, first_rows = _open_parquet(*version)
    group = int(np.searchsorted(first_rows, row, side="right")) - 1
    if group == len(first_rows) - 1:
        raise ValueError(f"the table has {first_rows[-1]} rows")
    if column not in file.schema_arrow.names:
        raise ValueError(f"the table has no column {column}")
    cell = _read_cells(*version, column, group)[row - first_rows[group]].as_py()
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise ValueError("the cell holds no file")
    return content


@lru_cache(maxsize=4)
def _open_parquet(path: str, size: int, mtime: int) -> tuple[Any, np.ndarray]:
    """Return a parquet file, and the first row of each of its groups followed by the number of rows."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return file, np.cumsum([0, *counts])


@lru_cache(maxsize=1)  # neighbouring rows follow each other, and a group of rows may take 100 MB
def _read_cells(path: str, size: int, mtime: int, column: str, group: int) -> Any:
    file, _ = _open_parquet(path, size, mtime)
    return file.read_row_group(group, columns=[column]).column(0)

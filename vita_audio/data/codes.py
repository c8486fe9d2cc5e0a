"""Audio codes on disk, one database per audio tokenizer.

Codes are stored under a hash of the audio file's bytes, so copies share them, also those inside an archive, and a
changed file loses them. Files whose path, size and modification time are stored are not read again.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from vita_audio.data.audio import AudioError, audio_info, load_audio
from vita_audio.data.audio_part import AudioPart
from vita_audio.data.parallel import map_ordered
from vita_audio.errors import RunError

_COMMIT_EVERY = 64  # files between two writes: the most that an interrupted extraction loses
_SCHEMA = """
CREATE TABLE IF NOT EXISTS codes (digest BLOB PRIMARY KEY, codes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, digest BLOB, error TEXT
);
"""


class MissingCodesError(LookupError):
    """An audio file exists but has not been processed by tools/extract_audio_codes.py."""


@dataclass(frozen=True)
class FileState:
    """Identifies a file, or a part of one, without reading it."""

    path: str
    size: int
    mtime: int  # ns

    @classmethod
    def of(cls, path: str | Path) -> FileState:
        """Return the state of an audio file, or of a part of a file. Raises: FileNotFoundError."""
        part = AudioPart.parse(path)
        if not os.path.isfile(part.file):  # unlike Path.is_file, also accepts names that are too long or contain NUL
            name = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
            raise FileNotFoundError(f"{name}: no such audio file")
        resolved = Path(part.file).resolve()
        stat = resolved.stat()
        return cls(str(replace(part, file=str(resolved))), stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Extraction:
    """Result for one file: digest and codes, only the digest if its codes are stored already, or an error."""

    state: FileState
    digest: bytes | None = None
    codes: Sequence[int] | None = None
    error: str | None = None


class AudioCodeStore:
    """Codes of audio files for one audio tokenizer."""

    def __init__(self, folder: str | Path, tokenizer_id: str, *, read_only: bool = False):
        """Open the database, or create it.

        Args:
            tokenizer_id: `AudioTokenizer.fingerprint`; tokenizers with other weights make other codes, so each has its
                own database.
            read_only: Open an existing database without changing it.
        Raises: FileNotFoundError if there is no database to read; ValueError for an invalid `tokenizer_id`; RunError,
            like the methods, if the database is damaged or cannot be written.
        """
        if not re.fullmatch(r"[\w.-]+", tokenizer_id):
            raise ValueError(f"tokenizer_id may hold letters, digits, '.', '_' and '-', got {tokenizer_id!r}")
        self.folder, self.tokenizer_id, self.read_only = Path(folder), tokenizer_id, read_only
        self.path = self.folder / f"{tokenizer_id}.sqlite"
        if read_only:
            if not self.path.is_file():
                raise FileNotFoundError(f"no {self.path}; run tools/extract_audio_codes.py --codes {folder}")
            self._database = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", timeout=60, uri=True)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._explained_errors():
                self._database = sqlite3.connect(self.path, timeout=60)
                self._database.executescript(_SCHEMA)

    def __reduce__(self) -> tuple[Callable[..., AudioCodeStore], tuple[Path, str]]:
        return partial(AudioCodeStore, read_only=self.read_only), (self.folder, self.tokenizer_id)

    def codes(self, path: str | Path) -> list[int]:
        """Return the codes of an audio file.

        Raises: FileNotFoundError; AudioError if its extraction failed; MissingCodesError if it was not extracted.
        """
        state = FileState.of(path)
        digest, error = self._known(state)
        if error:
            raise AudioError(error)
        codes = self._by_digest(digest or hash_audio(state.path))
        if codes is None:
            raise MissingCodesError(f"no codes for {path} in {self.path}; run tools/extract_audio_codes.py")
        return codes

    def has(self, state: FileState) -> bool:
        """Return whether the codes of a file are stored, according to its path, size and modification time."""
        digest, _ = self._known(state)
        return digest is not None and self.has_digest(digest)

    def has_digest(self, digest: bytes) -> bool:
        return self._by_digest(digest) is not None

    def __len__(self) -> int:
        return self._database.execute("SELECT COUNT(*) FROM codes").fetchone()[0]

    @property
    def revision(self) -> int:
        """Number that every write increases, for cache keys."""
        return self._database.execute("PRAGMA user_version").fetchone()[0]

    def add(self, extractions: Iterable[Extraction]) -> None:
        """Write extractions in one transaction; those that are stored already change nothing."""
        new = [
            item
            for item in extractions
            if item.codes is not None or self._known(item.state) != (item.digest, item.error)
        ]
        if not new:
            return
        with self._explained_errors(), self._database as database:
            for item in new:
                state = item.state
                if item.codes is not None:
                    packed = np.asarray(item.codes, dtype="<i4").tobytes()
                    database.execute("INSERT OR REPLACE INTO codes VALUES (?, ?)", (item.digest, packed))
                database.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                    (state.path, state.size, state.mtime, item.digest, item.error),
                )
            database.execute(f"PRAGMA user_version = {self.revision + 1}")

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:  # not an OSError, which would count as one of an audio file
            raise RunError(
                f"{self.path}: {error}; its folder must be writable, with free space on the disk. If the file is "
                "damaged, delete it and extract the codes again"
            ) from error

    def _known(self, state: FileState) -> tuple[bytes | None, str | None]:
        query = "SELECT digest, error FROM files WHERE path = ? AND size = ? AND mtime = ?"
        with self._explained_errors():
            row = self._database.execute(query, (state.path, state.size, state.mtime)).fetchone()
        return row or (None, None)

    def _by_digest(self, digest: bytes) -> list[int] | None:
        with self._explained_errors():
            row = self._database.execute("SELECT codes FROM codes WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else np.frombuffer(row[0], dtype="<i4").tolist()


@dataclass
class ExtractionReport:
    """Counts of one extraction run; `failures` maps paths to reasons."""

    num_files: int = 0
    num_present: int = 0
    num_encoded: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        lines = [
            f"{self.num_files} audio files: {self.num_present} had codes, {self.num_encoded} encoded, "
            f"{len(self.failures)} failed"
        ]
        return "\n".join(lines + [f"  {reason}" for reason in self.failures.values()])


def extract_codes(
    paths: Iterable[str | Path],
    store: AudioCodeStore,
    make_tokenizer: Callable[..., Any],
    *,
    devices: Sequence[str] = ("cpu",),
    num_workers: int = 0,
    mapper: Callable[..., Iterator[Any]] | None = None,
    progress: bool = False,
) -> ExtractionReport:
    """Encode the audio files that have no codes yet, and report those that cannot be read.

    Codes are written every few files, so an interrupted run can be continued.

    Args:
        make_tokenizer: Makes the audio tokenizer, given `device`; called once per worker, so it must be picklable.
        devices: Devices assigned to the workers in turn.
        num_workers: Number of processes; 0 encodes in the calling process.
        mapper: Function like `map_ordered` whose workers may be on other machines, and so do not open the database.
    """
    report = ExtractionReport()
    pending = []
    for path in dict.fromkeys(str(path) for path in paths):
        report.num_files += 1
        try:
            state = FileState.of(path)
        except FileNotFoundError as error:
            report.failures[path] = str(error)
            continue
        if store.has(state):
            report.num_present += 1
        else:
            pending.append(state)
    make_encoder = partial(_make_encoder, make_tokenizer, tuple(devices), None if mapper else store)
    results = (mapper or map_ordered)(make_encoder, pending, num_workers)
    waiting: list[Extraction] = []
    try:
        for result in tqdm(results, total=len(pending), desc="audio codes", unit="file", disable=not progress):
            waiting.append(result)
            if result.error:
                report.failures[result.state.path] = result.error
            elif result.codes is None:
                report.num_present += 1
            else:
                report.num_encoded += 1
            if len(waiting) >= _COMMIT_EVERY:
                store.add(waiting)
                waiting.clear()
    finally:
        store.add(waiting)
    return report


def _make_encoder(
    make_tokenizer: Callable[..., Any], devices: Sequence[str], store: AudioCodeStore | None, rank: int
) -> Callable[[FileState], Extraction]:
    tokenizer = make_tokenizer(device=devices[rank % len(devices)])

    def encode(state: FileState) -> Extraction:
        try:
            digest = hash_audio(state.path)
            if store is not None and store.has_digest(digest):
                return Extraction(state, digest)
            wave = load_audio(state.path, tokenizer.sample_rate)
        except (AudioError, OSError) as error:
            return Extraction(state, error=str(error))
        return Extraction(state, digest, list(tokenizer.encode(wave, tokenizer.sample_rate)))

    return encode


def hash_file(path: str | Path) -> bytes:
    """Return a 16-byte hash of a file's content."""
    with open(path, "rb") as file:
        return _hash_stream(file)


def _hash_stream(file: BinaryIO) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()


def hash_audio(path: str | Path) -> bytes:
    """Return a 16-byte hash of audio: of its file's content, or of the samples of a stretch of a recording.

    Raises: AudioError, OSError.
    """
    part = AudioPart.parse(path)
    if part.seconds:
        rate = audio_info(path).sample_rate
        content = load_audio(path, rate).numpy().tobytes() + str(rate).encode()
        return hashlib.blake2b(content, digest_size=16).digest()
    try:
        with part.open() as source:
            return hash_file(source) if isinstance(source, str) else _hash_stream(source)
    except ValueError as error:
        raise AudioError(f"{path}: {error}; make the list of samples again") from error

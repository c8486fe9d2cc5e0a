"""Measured clips on disk, in one SQLite database, so that memory does not grow and an interrupted run continues."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tools.corpora.entries import Entry
from vita_audio.data.codes import FileState
from vita_audio.data.mixture import Problem
from vita_audio.errors import RunError

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA temp_store = FILE;
CREATE TABLE IF NOT EXISTS entries (
    audio TEXT PRIMARY KEY, state TEXT NOT NULL, done INTEGER NOT NULL, run INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS clips (
    id INTEGER PRIMARY KEY, entry TEXT NOT NULL, audio TEXT UNIQUE NOT NULL, speaker TEXT NOT NULL,
    recording TEXT NOT NULL, text TEXT, heard TEXT, errors INTEGER NOT NULL, words INTEGER NOT NULL,
    seconds REAL NOT NULL, level_db REAL NOT NULL, clipped REAL NOT NULL, snr_db REAL NOT NULL, print BLOB NOT NULL,
    listed TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS clips_of_entry ON clips (entry);
CREATE TABLE IF NOT EXISTS problems (
    entry TEXT NOT NULL, kind TEXT NOT NULL, listed TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS problems_of_entry ON problems (entry);
"""


@dataclass(frozen=True)
class Clip:
    """A measured clip.

    Attributes:
        entry: Audio of the recording that it is cut from, or is.
        audio: A path, see `vita_audio.data.audio_part`.
        text: Its given transcript, or None.
        heard: What the recogniser heard, or None without one.
        errors: Differences between the two, in words.
        words: Number of words of `text`.
        listed: File and line where its recording was found.
    """

    entry: str
    audio: str
    speaker: str
    recording: str
    text: str | None
    heard: str | None
    errors: int
    words: int
    seconds: float
    level_db: float
    clipped: float
    snr_db: float
    print: bytes
    listed: str

    @property
    def transcript(self) -> str:
        """The text to learn: the given one, or else what was heard."""
        return (self.heard or "") if self.text is None else self.text


class ClipStore:
    """The database of a prepared corpus; its view `seen` has the recordings of this run.

    Nothing is written before `commit`.
    """

    def __init__(self, path: Path):
        """Open the database, or create it. Raises: RunError, like the methods, if it is damaged or not writable."""
        self.path = path
        with self.explained_errors():
            self.database = sqlite3.connect(path, timeout=60)
            self.database.executescript(_SCHEMA)
            (last,) = self.database.execute("SELECT COALESCE(MAX(run), 0) FROM entries").fetchone()
            self.run = last + 1
            self.database.execute(f"CREATE TEMP VIEW seen AS SELECT audio FROM entries WHERE run = {self.run}")
            self.database.execute("DELETE FROM problems WHERE entry = ''")  # those of lists are found again

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{self.path}: {error}; its folder must be writable, with free space on the disk. If the file is "
                "damaged, delete it and prepare the corpus again"
            ) from error

    def begin(self, entry: Entry) -> bool:
        """Return whether a recording has to be measured, or measured to its end.

        Results for another state of its file, or of what is known of it, are dropped. Raises: FileNotFoundError.
        """
        audio, state = str(entry.audio), _state(entry)
        query = "SELECT state, done, run FROM entries WHERE audio = ?"
        known, done, run = self.database.execute(query, (audio,)).fetchone() or (None, 0, 0)
        if run == self.run:
            self.add_problem(Problem(entry.file, entry.line, "listed twice", f"{audio} is listed twice"))
            return False
        if known != state:
            for table in ("clips", "problems"):
                self.database.execute(f"DELETE FROM {table} WHERE entry = ?", (audio,))
            done = 0
        row = (audio, state, done, self.run)
        self.database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", row)
        return not done

    def has(self, audio: str) -> bool:
        return self.database.execute("SELECT 1 FROM clips WHERE audio = ?", (audio,)).fetchone() is not None

    def add_clips(self, clips: Iterable[Clip]) -> None:
        names = [field.name for field in fields(Clip)]
        query = f"INSERT OR IGNORE INTO clips ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        with self.explained_errors():
            self.database.executemany(query, map(astuple, clips))

    def heard_in(self, entry: Entry) -> tuple[list[int], list[str]]:
        """Return the numbers of the clips of a recording in order, and what was heard in each."""
        query = "SELECT id, heard FROM clips WHERE entry = ? ORDER BY id"
        rows = self.database.execute(query, (str(entry.audio),)).fetchall()
        return [number for number, _ in rows], [heard or "" for _, heard in rows]

    def set_text(self, number: int, text: str, errors: int, words: int) -> None:
        row = (text, errors, words, number)
        with self.explained_errors():
            self.database.execute("UPDATE clips SET text = ?, errors = ?, words = ? WHERE id = ?", row)

    def add_problem(self, problem: Problem, entry: Entry | None = None) -> None:
        listed = f"{problem.file}:{problem.line}" if problem.line else problem.file
        texts = (str(entry.audio) if entry else "", problem.kind, listed, problem.reason)
        row = [text.encode("utf-8", "backslashreplace").decode() for text in texts]
        with self.explained_errors():
            self.database.execute("INSERT INTO problems VALUES (?, ?, ?, ?)", row)

    def finish(self, entry: Entry) -> None:
        """Note that a recording is measured to its end."""
        with self.explained_errors():
            self.database.execute("UPDATE entries SET done = 1 WHERE audio = ?", (str(entry.audio),))

    def commit(self) -> None:
        with self.explained_errors():
            self.database.commit()

    def close(self) -> None:
        self.database.close()


def _state(entry: Entry) -> str:
    """Return a text that changes with the file and with what is known of the recording."""
    file = FileState.of(entry.audio.file)
    known = json.dumps([entry.text, entry.speaker, entry.recording])
    return f"{file.size} {file.mtime} {hashlib.blake2b(known.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"

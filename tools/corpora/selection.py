"""Decide which measured clips are used: limits on sound and text, no copies, and a held-out part."""

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, fields

from tools.corpora.clip_store import Clip, ClipStore
from tools.corpora.measures import print_distance, print_keys

TRAIN, HELD_OUT, REJECTED = "train", "heldout", "rejected"
SAME_PRINT = 0.15  # share of differing bits; copies in other formats reach 0.1, other clips begin at 0.25
SAME_LENGTH = 0.05  # relative difference
UNKNOWN_SPEAKER = "speaker"  # voice in the manifest of clips without a speaker
# What is held out together, the largest first.
GROUPS = {"speaker": "speaker", "recording": "speaker || char(31) || recording", "clip": "audio"}
_COLUMNS = ", ".join(f"clips.{field.name}" for field in fields(Clip))
_SCHEMA = """
DROP TABLE IF EXISTS temp.verdicts;
DROP TABLE IF EXISTS temp.prints;
DROP TABLE IF EXISTS temp.texts;
CREATE TEMP TABLE verdicts (clip INTEGER PRIMARY KEY, part TEXT NOT NULL, kind TEXT, reason TEXT);
CREATE TEMP TABLE prints (key INTEGER NOT NULL, clip INTEGER NOT NULL, PRIMARY KEY (key, clip)) WITHOUT ROWID;
CREATE TEMP TABLE texts (text TEXT PRIMARY KEY, copies INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Limits:
    """Which clips are used; the names are options of tools/prepare_speech.py.

    Attributes:
        min_level: Least root mean square, dB relative to full scale.
        max_clipped: Largest share of samples at full scale.
        min_snr: Least estimated ratio of speech to noise, dB.
        max_wer: Largest share of words in which transcript and recogniser may differ; one word always may.
        max_speed: Most characters per second.
        renditions: Clips kept of one text by one speaker.
        held_out: Share of the clips that is not trained on.
        speaker: The only speaker whose clips are used, `UNKNOWN_SPEAKER` for clips without a name; None: all.
    """

    min_seconds: float = 0.5
    max_seconds: float = 30.0
    min_level: float = -45.0
    max_clipped: float = 0.001
    min_snr: float = 10.0
    max_wer: float = 0.3
    max_speed: float = 35.0
    renditions: int = 1
    held_out: float = 0.05
    speaker: str | None = None

    def reason(self, clip: Clip) -> tuple[str, str] | None:
        """Return kind and reason if a clip may not be used."""
        text, speed = clip.transcript, len(clip.transcript) / clip.seconds
        most, speaker = max(1, self.max_wer * clip.words), clip.speaker or UNKNOWN_SPEAKER
        rules = (
            (self.speaker not in (None, speaker), "other speaker", f"spoken by {speaker}"),
            (clip.seconds < self.min_seconds, "too short", f"{clip.seconds:.2f} s, at least {self.min_seconds:g}"),
            (clip.seconds > self.max_seconds, "too long", f"{clip.seconds:.2f} s, at most {self.max_seconds:g}"),
            (clip.level_db < self.min_level, "too quiet", f"{clip.level_db:.1f} dB, at least {self.min_level:g}"),
            (clip.clipped > self.max_clipped, "clipped", f"{clip.clipped:.2%} of the samples are at full scale"),
            (
                clip.snr_db < self.min_snr,
                "noisy",
                f"about {clip.snr_db:.1f} dB over noise, at least {self.min_snr:g}",
            ),
            (not clip.words, "no words", f"the transcript has no words: {text!r}"),
            (speed > self.max_speed, "too fast", f"{speed:.0f} characters per second, at most {self.max_speed:g}"),
            (clip.errors > most, "wrong transcript", f"{clip.errors} of {clip.words} words differ from what was heard"),
        )
        return next(((kind, reason) for is_broken, kind, reason in rules if is_broken), None)


def select_clips(store: ClipStore, limits: Limits) -> str:
    """Write a verdict on every clip of this run to the table `verdicts`; return what was held out together."""
    database = store.database
    database.executescript(_SCHEMA)
    for number, clip in _clips(database):
        verdict = limits.reason(clip) or _copy_of(database, clip, limits)
        part, kind, reason = (REJECTED, *verdict) if verdict else (TRAIN, None, None)
        database.execute("INSERT INTO verdicts VALUES (?, ?, ?, ?)", (number, part, kind, reason))
        if not verdict:
            _remember(database, number, clip)
    return hold_out(database, limits.held_out)


def _clips(database: sqlite3.Connection) -> Iterator[tuple[int, Clip]]:
    """Yield the clips of this run's recordings, in the order in which they were measured."""
    query = f"SELECT clips.id, {_COLUMNS} FROM clips WHERE entry IN (SELECT audio FROM temp.seen) ORDER BY clips.id"
    for number, *values in database.execute(query):
        yield number, Clip(*values)


def _copy_of(database: sqlite3.Connection, clip: Clip, limits: Limits) -> tuple[str, str] | None:
    """Return kind and reason if a clip that is used has the same sound, or its speaker says the same text."""
    keys = print_keys(clip.print)
    query = (
        "SELECT DISTINCT clips.audio, clips.print FROM temp.prints JOIN clips ON clips.id = prints.clip "
        f"WHERE prints.key IN ({', '.join('?' * len(keys))}) AND clips.seconds BETWEEN ? AND ?"
    )
    span = clip.seconds * (1 - SAME_LENGTH), clip.seconds * (1 + SAME_LENGTH)
    for audio, other in database.execute(query, (*keys, *span)):
        if print_distance(clip.print, other) <= SAME_PRINT:
            return "same sound", f"the same sound as {audio}"
    known = database.execute("SELECT copies FROM temp.texts WHERE text = ?", (_spoken_text(clip),)).fetchone()
    if known and known[0] >= limits.renditions:
        return "same text", f"{known[0]} clips of this speaker have the same text"
    return None


def _remember(database: sqlite3.Connection, number: int, clip: Clip) -> None:
    rows = [(key, number) for key in print_keys(clip.print)]
    database.executemany("INSERT OR IGNORE INTO temp.prints VALUES (?, ?)", rows)
    database.execute(
        "INSERT INTO temp.texts VALUES (?, 1) ON CONFLICT (text) DO UPDATE SET copies = copies + 1",
        (_spoken_text(clip),),
    )


def _spoken_text(clip: Clip) -> str:
    words = "".join(character if character.isalnum() else " " for character in clip.transcript.casefold()).split()
    return "\0".join([clip.speaker, *words])


def hold_out(database: sqlite3.Connection, share: float) -> str:
    """Mark about `share` of the used clips as held out and return the kind of group that stays together.

    Takes whole speakers if some of them make up at least half of the share and no more than it; or else whole
    recordings, or else single clips.
    """
    (count,) = database.execute("SELECT COUNT(*) FROM temp.verdicts WHERE part = ?", (TRAIN,)).fetchone()
    wanted = max(1, round(share * count)) if share else 0
    if not wanted or count < 2:
        return "none"
    database.create_function("drawn", 1, lambda name: hashlib.sha1(name.encode("utf-8", "replace")).hexdigest())
    database.executescript(
        "DROP TABLE IF EXISTS temp.chosen; CREATE TEMP TABLE chosen (name TEXT PRIMARY KEY) WITHOUT ROWID;"
    )
    kind, name = next(group for group in GROUPS.items() if _choose_groups(database, group[1], wanted))
    database.execute(
        "UPDATE temp.verdicts SET part = ? WHERE part = ? AND clip IN "
        f"(SELECT id FROM clips WHERE {name} IN (SELECT name FROM temp.chosen))",
        (HELD_OUT, TRAIN),
    )
    return kind


def _choose_groups(database: sqlite3.Connection, name: str, wanted: int) -> bool:
    """Fill the table `chosen` with groups, drawn by their names; return whether they have enough clips."""
    taken = 0
    query = (
        f"SELECT {name} AS name, COUNT(*) FROM clips JOIN temp.verdicts ON verdicts.clip = clips.id "
        "WHERE verdicts.part = ? GROUP BY name ORDER BY drawn(name)"
    )
    database.execute("DELETE FROM temp.chosen")
    for group, size in database.execute(query, (TRAIN,)):
        if taken + size <= wanted:
            taken += size
            database.execute("INSERT INTO temp.chosen VALUES (?)", (group,))
    return 2 * taken >= wanted


def judged_clips(
    database: sqlite3.Connection, where: str = "1", *values: object
) -> Iterator[tuple[Clip, str, str, str]]:
    """Yield clips with the part they belong to, and kind and reason of a rejection; `where` is SQL."""
    query = f"SELECT {_COLUMNS}, part, kind, reason FROM clips JOIN temp.verdicts ON verdicts.clip = clips.id"
    for *clip, part, kind, reason in database.execute(f"{query} WHERE {where}", values):
        yield Clip(*clip), part, kind, reason

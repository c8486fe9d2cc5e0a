"""Write a selected corpus: samples for training, items for evaluation, the mixture, and what was rejected and why."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tools.corpora.clip_store import Clip
from tools.corpora.selection import HELD_OUT, REJECTED, TRAIN, UNKNOWN_SPEAKER, judged_clips
from vita_audio.data.samples import recognition_sample, synthesis_sample
from vita_audio.files.atomic import atomic_path, write_text

TASKS = ("asr", "tts")
MIXTURE, REJECTIONS = "data.yaml", "rejections.jsonl"
MANIFEST = "manifest.jsonl"  # of tools.codec


def write_corpus(folder: Path, database: sqlite3.Connection) -> None:
    """Write the files that training and evaluation read, and `REJECTIONS`, one row at a time."""
    names = [f"{task}.jsonl" for task in TASKS] + [f"heldout_{task}.jsonl" for task in TASKS] + [MANIFEST, REJECTIONS]
    with ExitStack() as stack:
        paths = {name: stack.enter_context(atomic_path(folder / name)) for name in names}
        files = {name: stack.enter_context(path.open("w", encoding="utf-8")) for name, path in paths.items()}
        for name, row in _rows(database):
            files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
    entries = {f"speech_{task}": {"ratio": 1.0, "data_paths": [f"{task}.jsonl"]} for task in TASKS}
    write_text(folder / MIXTURE, yaml.safe_dump({"dataset": entries}, sort_keys=False))


def _rows(database: sqlite3.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with the name of its file."""
    for number, (clip, part, kind, reason) in enumerate(judged_clips(database, "1 ORDER BY clips.id")):
        if part == REJECTED:
            yield REJECTIONS, {"kind": kind, "reason": reason, "listed": clip.listed, "audio": clip.audio}
        elif part == TRAIN:
            yield "asr.jsonl", recognition_sample(clip.audio, clip.transcript)
            yield "tts.jsonl", synthesis_sample(clip.transcript, clip.audio)
            yield MANIFEST, {"audio": clip.audio, "text": clip.transcript, "voice": clip.speaker or UNKNOWN_SPEAKER}
        else:
            yield from _held_out_items(number, clip)
    for kind, listed, reason in problems(database):
        yield REJECTIONS, {"kind": kind, "reason": reason, "listed": listed}


def _held_out_items(number: int, clip: Clip) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a clip as items of `evaluation.run --suite demo-asr demo-tts`."""
    for task in TASKS:
        item = {"id": f"{task}-{number}", "task": task, "audio": clip.audio, "reference": clip.transcript}
        yield f"heldout_{task}.jsonl", item | ({"text": clip.transcript} if task == "tts" else {})


def problems(database: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield kind, file with line, and reason of what could not be read in this run."""
    yield from database.execute(
        "SELECT kind, listed, reason FROM problems "
        "WHERE entry = '' OR entry IN (SELECT audio FROM temp.seen) ORDER BY rowid"
    )


def summarise(database: sqlite3.Connection, held_out_by: str) -> dict[str, Any]:
    """Return the counts of a selected corpus."""
    sizes = "SELECT part, COUNT(*), SUM(seconds), COUNT(DISTINCT speaker), COUNT(DISTINCT recording) FROM clips "
    rows = database.execute(f"{sizes} JOIN temp.verdicts ON verdicts.clip = clips.id GROUP BY part").fetchall()
    parts = {
        part: {"clips": clips, "minutes": round(seconds / 60, 2), "speakers": speakers, "recordings": recordings}
        for part, clips, seconds, speakers, recordings in rows
    }
    rejections: dict[str, int] = {}
    for kind, count in database.execute(
        "SELECT kind, COUNT(*) FROM temp.verdicts WHERE part = ? GROUP BY kind", (REJECTED,)
    ):
        rejections[kind] = count
    for kind, _, _ in problems(database):
        rejections[kind] = rejections.get(kind, 0) + 1
    heard = "SELECT SUM(errors), SUM(words) FROM clips JOIN temp.verdicts ON verdicts.clip = clips.id "
    errors, words = database.execute(
        f"{heard} WHERE part <> ? AND text IS NOT NULL AND heard IS NOT NULL", (REJECTED,)
    ).fetchone()
    return {
        "parts": {part: parts[part] for part in (TRAIN, HELD_OUT, REJECTED) if part in parts},
        "held_out_by": held_out_by,
        "rejections": dict(sorted(rejections.items(), key=lambda item: -item[1])),
        "wer": errors / words if words else None,
    }

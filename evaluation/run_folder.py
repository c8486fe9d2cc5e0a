"""The folder of an evaluation: rows that survive a kill, settings and samples that must not change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evaluation.demo import write_json
from evaluation.metrics.score import shorten

SETTINGS, ITEMS = "settings.json", "items.json"

Row = dict[str, Any]


class RowFile:
    """JSON lines of one kind, such as "answers", in a folder; every process appends to a file of its own."""

    def __init__(self, folder: Path, kind: str, rank: int = 0):
        self.folder, self.kind, self.rank = folder, kind, rank

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind}-{self.rank}.jsonl"

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows and hand them to the system, so that they outlive this process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_unfinished_line()
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def read(self) -> dict[str, Row]:
        """Return the rows of all processes by their `id`; one without an `error` takes the place of one with.

        Raises: ValueError naming a line that is damaged, other than by a kill.
        """
        rows: dict[str, Row] = {}
        for path in sorted(self.folder.glob(f"{self.kind}-*.jsonl")):
            lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut off by a kill
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: must be one JSON object ({error}); delete the line") from error
                if row["id"] not in rows or "error" not in row:
                    rows[row["id"]] = row
        return rows

    def _drop_unfinished_line(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        with self.path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down what decides the figures, or compare it with what is there.

    Raises: ValueError if the folder was made with other settings.
    """
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    earlier = read_settings(folder)
    now = json.loads(json.dumps(settings))
    if changed := sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name)):
        described = ", ".join(f"{name}: {earlier.get(name)} before, {now.get(name)} now" for name in changed)
        raise ValueError(
            f"{folder} was made with other settings ({described}); choose another --output, or delete what is there"
        )


def keep_items(folder: Path, items: Mapping[str, Mapping[str, str]]) -> None:
    """Write down what the samples are, or compare it with what is there: an answer is one to its sample only.

    Args:
        items: Fingerprints by benchmark and id.
    Raises: ValueError if a sample has changed since.
    """
    known = read_items(folder)
    for name, fingerprints in items.items():
        earlier = known.setdefault(name, {})
        if changed := changed_items(earlier, fingerprints):
            raise ValueError(
                f"{folder} was made with other data ({name}: {shorten(changed)}); choose another --output, or delete "
                "what is there"
            )
        earlier |= fingerprints
    write_json(folder / ITEMS, known)


def read_items(folder: Path) -> dict[str, dict[str, str]]:
    """Return the fingerprints by benchmark and id; none of a folder that has not kept them."""
    path = folder / ITEMS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def changed_items(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the ids that both know, of different samples."""
    return [name for name in now if earlier.get(name, now[name]) != now[name]]


def read_settings(folder: Path) -> Row:
    """Raises: FileNotFoundError if nothing was evaluated there."""
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"no {folder / SETTINGS}; give the --output of an evaluation")
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))

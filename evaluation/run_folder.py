"""The output folder of an evaluation: crash-safe rows, settings and samples that must not change, and its processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from evaluation.metrics.score import shorten
from vita_audio.files.atomic import write_json
from vita_audio.workers import end_with_parent

SETTINGS, ITEMS = "settings.json", "items.json"
BARRIER_TIMEOUT = timedelta(days=7)
LOCK_TIMEOUT_SECONDS = 10.0  # a process that is being killed may need a few to release its lock

Row = dict[str, Any]


class RowFile:
    """JSON lines of one kind, such as "answers", in a folder; every process appends to a file of its own."""

    def __init__(self, folder: Path, kind: str, rank: int = 0):
        self.folder, self.kind, self.rank = folder, kind, rank

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind}-{self.rank}.jsonl"

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and hand them to the operating system, so that they survive a kill of this process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_unfinished_line()
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def read(self) -> dict[str, Row]:
        """Return the rows of all processes by their `id`; a row without an `error` replaces one with an error.

        Raises: ValueError naming a line that is damaged other than by a kill.
        """
        rows: dict[str, Row] = {}
        for path in sorted(self.folder.glob(f"{self.kind}-*.jsonl")):
            lines = path.read_bytes().split(b"\n")[:-1]  # a kill cuts off the last line before its newline
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
    """Save the settings of a new folder. Raises: ValueError if the folder was made with other settings."""
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    earlier = read_settings(folder)
    now = json.loads(json.dumps(settings))
    if changed := sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name)):
        described = ", ".join(f"{name}: {earlier.get(name)} before, {now.get(name)} now" for name in changed)
        raise ValueError(
            f"{folder} was made with other settings ({described}); choose another --output, or delete its contents"
        )


def keep_items(folder: Path, items: Mapping[str, Mapping[str, str]]) -> None:
    """Save the samples' fingerprints by benchmark and id: an answer belongs to its exact sample.

    Raises: ValueError if a sample has changed since.
    """
    known = read_items(folder)
    for name, fingerprints in items.items():
        earlier = known.setdefault(name, {})
        if changed := changed_items(earlier, fingerprints):
            raise ValueError(
                f"{folder} was made with other data ({name}: {shorten(changed)}); choose another --output, or delete "
                "its contents"
            )
        earlier |= fingerprints
    write_json(folder / ITEMS, known)


def read_items(folder: Path) -> dict[str, dict[str, str]]:
    """Return the fingerprints by benchmark and id; empty for a folder without any."""
    path = folder / ITEMS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def changed_items(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the ids that occur in both with different fingerprints."""
    return [name for name in now if earlier.get(name, now[name]) != now[name]]


def read_settings(folder: Path) -> Row:
    """Return the settings of an evaluation. Raises: FileNotFoundError if the folder holds none."""
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"no {folder / SETTINGS}; give the --output of an evaluation")
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))


class Processes:
    """This process among those that torchrun started, or alone."""

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            import torch

            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
            torch.distributed.barrier()

    def device(self, wanted: str) -> str:
        """Return the device to use: for "auto" this process's GPU, or the CPU if there is none."""
        import torch

        from vita_audio.inference.pipeline import resolve_device

        if wanted == "auto" and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        return resolve_device(wanted)

    @contextmanager
    def claim(self, folder: Path) -> Iterator[None]:
        """Hold the lock of this process's share of a folder. Raises: ValueError if another process holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".process-{self.rank}.lock")
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_SECONDS)
        except Timeout as error:
            raise ValueError(
                f"another evaluation works in {folder}; wait until it is done, stop it, or choose another --output"
            ) from error
        try:
            yield
        finally:
            lock.release()


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar on a line of its own for each local process."""
    return tqdm(items, position=int(os.environ.get("LOCAL_RANK", 0)), **options)

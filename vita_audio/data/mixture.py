"""Read a data yaml, which names files and how many of their rows to use, and shuffle the rows.

dataset:
  spoken_qa: {ratio: 1.0, num: 100000, data_paths: [qa.jsonl, folder_of_jsonl]}

Rows remain JSON text until they are encoded, so that files with different columns can be mixed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, Features, Value, concatenate_datasets
from transformers.utils import logging

from vita_audio.data.audio_part import AudioPart
from vita_audio.data.chat import Conversation, SampleError
from vita_audio.text import ROLES

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DATA_SUFFIXES = (".json", ".jsonl")
_FEATURES = Features({"sample": Value("large_string"), "line": Value("int64"), "source": Value("int32")})
_ENTRY_KEYS = {"ratio", "num", "data_paths"}
_IGNORED_KEYS = {"do_dataset_format", "do_dataset_cast", "xlsx_sample_num"}  # of the public code's data yamls

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Problem:
    """A sample that is left out, and the reason; `kind` groups similar problems in a report."""

    file: str
    line: int
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """One data file of a mixture."""

    name: str
    file: str
    num_samples: int
    num_used: int


@dataclass
class Mixture:
    """Rows in training order, with columns `sample` (JSON text), `line` (from 1) and `source` (index of `sources`)."""

    rows: Dataset
    sources: list[Source]
    problems: list[Problem]


@dataclass(frozen=True)
class Entry:
    """One named group of the yaml. `ratio` above 1 repeats rows; `num` caps the rows of each file."""

    name: str
    files: tuple[Path, ...]
    ratio: float
    num: float


def load_mixture(path: str | Path, seed: int = 42) -> Mixture:
    """Read a data yaml and the files it names.

    Each file contributes the first `min(int(rows * ratio), num)` rows of its shuffled order; the rows of all files are
    then shuffled together. A line that is not JSON is left out and listed in `problems`.

    Raises: FileNotFoundError; ValueError for a malformed yaml or JSON list, or if there are no rows.
    """
    parts: list[Dataset] = []
    sources: list[Source] = []
    problems: list[Problem] = []
    chosen: list[np.ndarray] = []
    first = 0
    for entry in read_entries(path):
        for file in entry.files:
            samples = list(read_samples(file, problems))
            lines, texts = ([sample[column] for sample in samples] for column in (0, 1))
            columns = {"sample": texts, "line": lines, "source": [len(sources)] * len(texts)}
            parts.append(Dataset.from_dict(columns, features=_FEATURES))
            num_used = min(int(len(texts) * entry.ratio), entry.num)
            if texts:
                chosen.append(first + shuffled(len(texts), seed)[np.arange(num_used) % len(texts)])
            sources.append(Source(entry.name, str(file), len(texts), num_used))
            first += len(texts)
    order = np.concatenate(chosen) if chosen else np.arange(0)
    if not len(order):
        broken = f" ({len(problems)} lines are broken, {problems[0]})" if problems else ""
        raise ValueError(f"{path}: no rows in {len(sources)} data files{broken}; check ratio, num and data_paths")
    rows = concatenate_datasets(parts).select(order[shuffled(len(order), seed)])
    return Mixture(rows, sources, problems)


def referenced_audio(mixture: Mixture, roles: Container[str] = ROLES) -> list[Path]:
    """Return the audio files of some roles in the rows of a mixture, each once; malformed rows are skipped."""
    paths: dict[Path, None] = {}
    for row in mixture.rows:
        try:
            conversation = Conversation.parse(json.loads(row["sample"]))
        except SampleError:
            continue
        folder = Path(mixture.sources[row["source"]].file).parent
        for audio, role in zip(conversation.audios, conversation.audio_roles, strict=True):
            if isinstance(audio, str) and role in roles:
                paths[resolve(audio, folder)] = None
    return list(paths)


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return the order of VITA-Audio's data: the permutation drawn with `seed`, applied twice."""
    permutation = np.random.default_rng(seed).permutation(count)
    return permutation[permutation]


def read_entries(path: str | Path) -> list[Entry]:
    """Parse a data yaml; entries with ratio 0 or num 0 are left out, and their files need not exist.

    Raises: FileNotFoundError for a missing file or folder; ValueError for a malformed yaml.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not yaml: {error}") from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("dataset"), dict)
        or content.keys() - _IGNORED_KEYS - {"dataset"}
    ):
        raise ValueError(f"{path}: expected `dataset: {{name: {{ratio, num, data_paths}}}}`, got {content!r:.200}")
    if ignored := sorted(content.keys() & _IGNORED_KEYS):
        logger.warning_once(f"{path}: {', '.join(ignored)} have no effect here")
    entries = (_parse_entry(path, name, value) for name, value in content["dataset"].items())
    return [entry for entry in entries if entry is not None]


def _parse_entry(yaml_path: Path, name: str, value: Any) -> Entry | None:
    where = f"{yaml_path}: dataset {name!r}"
    if not isinstance(value, dict) or value.keys() - _ENTRY_KEYS:
        raise ValueError(f"{where}: allowed keys are {', '.join(sorted(_ENTRY_KEYS))}, got {value!r:.200}")
    ratio, num, data_paths = value.get("ratio", 1.0), value.get("num", math.inf), value.get("data_paths")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < math.inf:
        raise ValueError(f"{where}: ratio must be a number, 0 or more, got {ratio!r}")
    if num != math.inf and (isinstance(num, bool) or not isinstance(num, int) or num < 0):
        raise ValueError(f"{where}: num must be an integer, 0 or more, got {num!r}")
    if ratio == 0 or num == 0:
        return None
    if not isinstance(data_paths, list) or not data_paths:
        raise ValueError(f"{where}: data_paths must be a list of files or folders, got {data_paths!r}")
    files = [file for data_path in data_paths for file in _data_files(yaml_path, where, str(data_path))]
    return Entry(str(name), tuple(files), float(ratio), num)


def _data_files(yaml_path: Path, where: str, data_path: str) -> list[Path]:
    path = resolve(data_path, yaml_path.parent)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{where}: no file or folder {data_path}; set ratio to 0 to leave it out")
    files = sorted(file for file in path.rglob("*") if file.suffix in DATA_SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(f"{where}: no {' or '.join(DATA_SUFFIXES)} file in folder {data_path}")
    return files


def resolve(path: str | Path, folder: Path) -> Path:
    """Return `path` relative to `folder` if it exists there, else unchanged (absolute, or from the current folder)."""
    inside = folder / path
    file = AudioPart.parse(inside).file
    return inside if os.path.exists(file) else Path(path)  # unlike Path.exists, also accepts names that are too long


def read_samples(path: Path, problems: list[Problem]) -> Iterator[tuple[int, str]]:
    """Yield the line (for a JSON list: the position) and JSON text of each sample in a file.

    Lines and positions count from 1. Blank lines are skipped, and broken lines are appended to `problems`.

    Raises: ValueError for a JSON list that cannot be parsed.
    """
    with open(path, "rb") as file:
        start = b""
        while not start and (line := file.readline()):
            start = line.removeprefix(_BYTE_ORDER_MARK).strip()
        file.seek(0)
        if start.startswith(b"["):
            try:
                samples = _parse_json(file.read())
            except ValueError as error:
                raise ValueError(f"{path}: not a JSON list: {error}; repair the file") from error
            yield from ((number, json.dumps(sample)) for number, sample in enumerate(samples, 1))
            return
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(_BYTE_ORDER_MARK).strip()
            if not line:
                continue
            try:
                _parse_json(line)
            except ValueError as error:
                where = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                problems.append(Problem(str(path), number, "not JSON", f"not JSON: {where}"))
                continue
            yield number, line.decode("utf-8")


def _parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8; `json.loads` would also accept other encodings. Raises: ValueError."""
    text = content.decode("utf-8-sig")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error

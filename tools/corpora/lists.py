"""Read corpora of audio files: plain folders, LJSpeech, Common Voice, LibriSpeech, and lists as CSV, TSV or JSON."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.corpora.entries import AUDIO_FIELDS, AUDIO_SUFFIXES, Entry, Found, entry_from_fields
from vita_audio.data.audio_part import AudioPart
from vita_audio.data.mixture import Problem, read_samples

TEXT_SUFFIXES = (".txt", ".lab", ".normalized.txt")
DELIMITERS = "\t|,;"
COMMON_VOICE_LISTS = ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv")
WITHOUT_HEADER = ["audio", "text", "speaker"]


def read_folder(folder: Path) -> Found:
    """Yield the audio files below a folder; transcripts are .txt or .lab files of the same name.

    A folder below the first is a speaker. Links to folders are not followed. `folder` can be one recording instead.
    """
    if folder.is_file():
        yield _entry_of_file(folder, folder.parent)
        return
    for parent, folders, names in os.walk(folder):
        folders.sort()
        stems = {Path(name).stem for name in names if _is_audio(name)}
        for name in sorted(names):
            belongs = any(name[:place] in stems for place, character in enumerate(name) if character == ".")
            if _is_audio(name):
                yield _entry_of_file(Path(parent, name), folder)
            elif name.endswith(TEXT_SUFFIXES) and not belongs:
                yield Problem(str(Path(parent, name)), 0, "no audio", "a transcript without audio of the same name")
            elif name.lower().endswith((".csv", ".tsv")):
                columns = ", ".join(header_of(Path(parent, name)))
                reason = f"a list is read if --from names it and one of its columns is {', '.join(AUDIO_FIELDS)}"
                yield Problem(str(Path(parent, name)), 0, "list not read", f"{reason}; got the columns {columns:.200}")


def _is_audio(name: str) -> bool:
    return Path(name).suffix.lower() in AUDIO_SUFFIXES


def _entry_of_file(path: Path, folder: Path) -> Entry | Problem:
    found = (path.with_suffix(suffix) for suffix in TEXT_SUFFIXES)
    try:
        texts = (file.read_text(encoding="utf-8-sig") for file in found if file.is_file())
        text = next((" ".join(text.split()) for text in texts), None)
    except (OSError, UnicodeDecodeError) as error:
        return Problem(str(path), 0, "unreadable transcript", f"the transcript is not UTF-8 text: {error}")
    inside = path.relative_to(folder).parts
    return Entry(AudioPart.parse(path.absolute()), text, inside[0] if len(inside) > 1 else None, file=str(path))


def read_ljspeech(folder: Path) -> Found:
    """Yield the rows of metadata.csv: id | text | normalised text, with the audio in the folder wavs."""
    path = folder / "metadata.csv"
    for line, row in read_rows(path, "|"):
        if isinstance(row, Problem):
            yield row
        elif len(row) < 2:
            yield Problem(str(path), line, "malformed row", f"a row must be id|text, got {'|'.join(row)!r:.80}")
        else:
            name = row[0] if _is_audio(row[0]) else f"{row[0]}.wav"
            chapter = row[0].rpartition("-")[0] or None
            fields = {"audio": name, "text": row[-1], "recording": chapter}
            yield entry_from_fields(fields, path, line, [folder / "wavs"])


def read_common_voice(folder: Path) -> Found:
    """Yield the rows of validated.tsv, or else of train.tsv, dev.tsv and test.tsv, with the audio in clips."""
    validated, *parts = (folder / name for name in COMMON_VOICE_LISTS)
    for path in [validated] if validated.is_file() else filter(Path.is_file, parts):
        yield from read_table(path, [folder / "clips"])


def read_librispeech(folder: Path) -> Found:
    """Yield the lines of all SPEAKER-CHAPTER.trans.txt below a folder: id and text, with the audio next to them."""
    for path in sorted(folder.rglob("*.trans.txt")):
        for line, row in read_rows(path, " "):
            if isinstance(row, Problem):
                yield row
                continue
            chapter = path.name.removesuffix(".trans.txt")
            fields = {"audio": f"{row[0]}.flac", "text": " ".join(row[1:]), "speaker": chapter.partition("-")[0]}
            yield entry_from_fields(fields | {"recording": chapter}, path, line)


def read_list(path: Path) -> Found:
    """Yield the rows of a list of recordings; its columns or fields are found by their usual names."""
    folders = [path.parent / name for name in ("wavs", "clips", "audio", "wav", "mp3")]
    read = read_json if _is_json(path) else read_table
    yield from read(path, folders)


def read_table(path: Path, folders: list[Path]) -> Found:
    """Yield the rows of a CSV or TSV file; without a header its columns are `WITHOUT_HEADER`."""
    names = header_of(path)
    rows = read_rows(path, delimiter_of(path))
    if names is not WITHOUT_HEADER:  # a header can have the same names
        next(rows, None)
    for line, row in rows:
        if isinstance(row, Problem):
            yield row
        elif len(row) > len(names):
            yield Problem(str(path), line, "malformed row", f"the header has {len(names)} columns, got {len(row)}")
        else:
            yield entry_from_fields(dict(zip(names, row, strict=False)), path, line, folders)


def read_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """Yield the number and the cells of each row that is not blank; only commas and semicolons allow quotes."""
    quoting = csv.QUOTE_MINIMAL if delimiter in ",;" else csv.QUOTE_NONE
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"not a row of CSV up to line {rows.line_num}: {error}"
                yield line, Problem(str(path), line, "malformed row", reason)
                continue
            if any("\ufffd" in cell for cell in row):
                yield line, Problem(str(path), line, "malformed row", "not UTF-8")
            elif any(cell.strip() for cell in row):
                yield line, row


def read_json(path: Path, folders: list[Path]) -> Found:
    """Yield the objects of a JSON list, or of a file with one object per line."""
    problems: list[Problem] = []
    for line, text in read_samples(path, problems):
        yield from problems
        problems.clear()
        fields = json.loads(text)
        if isinstance(fields, dict):
            yield entry_from_fields(fields, path, line, folders)
        else:
            yield Problem(str(path), line, "malformed row", f"a row must be a JSON object, got {text:.80}")
    yield from problems


def header_of(path: Path) -> list[str]:
    """Return the lower-case names of the columns of a list, or of the fields of its first JSON object.

    A first row that begins with the name of an audio file is no header: the columns are `WITHOUT_HEADER`.
    """
    line = _first_line(path)
    if _is_json(path):
        fields = _first_object(line)
        return [str(name).lower() for name in fields] if isinstance(fields, dict) else []
    names = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter_of(path)), [])]
    return WITHOUT_HEADER if names and _is_audio(names[0]) else names


def names_audio(path: Path) -> bool:
    """Return whether a list names audio: by its header, or by the fields of its first object."""
    return not {*header_of(path)}.isdisjoint(AUDIO_FIELDS)


def delimiter_of(path: Path) -> str:
    """Return what ends the first cell of a table; the cells after it can be sentences with commas."""
    return next((character for character in _first_line(path) if character in DELIMITERS), ",")


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.readline(100_000).strip("\n\0")


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".json", ".jsonl")


def _first_object(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None

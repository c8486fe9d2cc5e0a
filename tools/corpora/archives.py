"""Read corpora in archives without unpacking them: WebDataset shards, parquet of Hugging Face, Lhotse cuts and Shar."""

import gzip
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from tools.corpora.entries import AUDIO_FIELDS, AUDIO_SUFFIXES, Entry, Found, labels
from vita_audio.data.audio_part import AudioPart
from vita_audio.data.mixture import Problem

MAX_LABEL_BYTES = 1 << 20  # of a text or JSON member
ROWS_AT_ONCE = 1000
SAME_TIMES = {"Resample", "Volume"}  # changes of a recording after which a cut is where it was


def read_webdataset(path: Path) -> Found:
    """Yield the samples of a shard: neighbouring members of the same name, of which one is audio.

    Their .txt is the text, their .json has more fields.
    """
    with tarfile.open(path, "r:") as archive:
        for key, members in groupby(_members(archive), lambda member: _key_and_suffix(member.name)[0]):
            audios, fields = [], {}
            for member in members:
                suffix = _key_and_suffix(member.name)[1]
                if "." + suffix.rpartition(".")[2] in AUDIO_SUFFIXES:
                    audios.append(member)
                elif suffix in ("txt", "lab", "json") and member.size <= MAX_LABEL_BYTES:
                    fields |= _label_fields(archive, member, suffix)
            if "problem" in fields:
                yield Problem(str(path), 0, "unreadable transcript", f"{key}: {fields['problem']}")
            elif len(audios) != 1:
                reason = f"one of its members must be audio, got {', '.join(audio.name for audio in audios) or 'none'}"
                yield Problem(str(path), 0, "no audio", f"{key}: {reason:.300}")
            else:
                part = AudioPart(str(path.absolute()), span=(audios[0].offset_data, audios[0].size))
                yield Entry(part, **labels(fields), file=f"{path}#{audios[0].name}")


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive; unlike its own iterator, collects none of them. Raises: tarfile.TarError."""
    while member := archive.next():
        archive.members.clear()
        if member.isreg():
            yield member
    if 0 < os.path.getsize(archive.name) - archive.offset < tarfile.BLOCKSIZE:  # next() takes this for the end
        raise tarfile.ReadError("unexpected end of data")


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split the name of a member at the first dot after the last slash."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem or path.name)), suffix.lower()


def _label_fields(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> dict[str, Any]:
    content = archive.extractfile(member).read()
    try:
        text = content.decode("utf-8-sig")
        if suffix != "json":
            return {"text": text}
        fields = json.loads(text)
        return {str(name).lower(): value for name, value in fields.items()} if isinstance(fields, dict) else {}
    except ValueError as error:
        return {"problem": f"its .{suffix} is unreadable: {error}"}


def read_parquet(path: Path) -> Found:
    """Yield the rows of a table with a column of audio, which is read only when it is needed."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as table:
        column = _audio_column(table.schema_arrow)
        if column is None:
            raise ValueError(f"no column holds audio; columns are {', '.join(table.schema_arrow.names)}")
        others = [field.name for field in table.schema_arrow if field.name != column and field.type.num_fields == 0]
        wanted = [name for name in others if labels({name.lower(): "x"}) != labels({})]
        row = 0
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if not wanted:
                batches = iter([[{}] * size])
            else:
                batches = (
                    batch.to_pylist() for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=wanted)
                )
            for fields in (fields for batch in batches for fields in batch):
                part = AudioPart(str(path.absolute()), cell=(row, column))
                fields = {name.lower(): value for name, value in fields.items()}
                yield Entry(part, **labels(fields), file=str(path), line=row + 1)
                row += 1


def _audio_column(schema: Any) -> str | None:
    """Return the column that holds files: a struct with bytes, or bytes under a usual name."""
    structs = [field.name for field in schema if _has_bytes(field.type)]
    plain = [name for name in AUDIO_FIELDS if name in schema.names and "binary" in str(schema.field(name).type)]
    return next(iter(structs + plain), None)


def _has_bytes(kind: Any) -> bool:
    return any(kind.field(place).name == "bytes" for place in range(kind.num_fields)) if kind.num_fields > 1 else False


def read_lhotse(path: Path) -> Found:
    """Yield the supervisions of a file of cuts; the audio of a Shar lies in the archive of the same number."""
    archive = path.with_name("recording." + path.name.partition(".")[2].removesuffix(".gz").replace(".jsonl", ".tar"))
    parts = _shar_parts(archive) if archive.is_file() else None
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line, row in enumerate(file, start=1):
            part = next(parts, None) if parts else None
            try:
                cut = json.loads(row)
                part = part if parts else _part_of_cut(cut)
                if part is None:
                    reason = "only unchanged cuts of one recording in a file, with one channel, can be read"
                    yield Problem(str(path), line, "no audio", f"{cut['id']}: {reason}")
                    continue
                yield from _supervisions(cut, part, None if parts else cut["recording"]["id"], path, line)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                yield Problem(str(path), line, "malformed row", f"not a cut of Lhotse: {type(error).__name__}: {error}")


def _part_of_cut(cut: dict[str, Any]) -> AudioPart | None:
    """Return the file of a cut, or None if there is none, or if the cut is not that file's sound at that time."""
    recording = cut.get("recording") or {}
    sources = recording.get("sources", [])
    files = [source["source"] for source in sources if source["type"] == "file"]
    is_as_recorded = {change["name"] for change in recording.get("transforms") or []} <= SAME_TIMES
    channels = recording.get("channel_ids") or [channel for source in sources for channel in source["channels"]]
    is_mono = len(channels) == 1 or isinstance(cut.get("channel"), list)  # else one of several
    return AudioPart(str(Path(files[0]).absolute())) if files and is_as_recorded and is_mono else None


def _supervisions(
    cut: dict[str, Any], part: AudioPart, recording: str | None, path: Path, line: int
) -> Iterator[Entry]:
    """Yield what is said in a cut, or the cut if that is unknown; times of supervisions count from its start."""
    begin, length = cut["start"], cut["duration"]
    for said in cut.get("supervisions") or [{"start": 0, "duration": length}]:
        start = begin + max(0, said["start"])
        end = begin + min(length, said["start"] + said["duration"])
        if start >= end:
            raise ValueError(f"what is said from {start:g} to {end:g} s is not in the cut")
        is_whole = start <= 0 and end >= cut["recording"]["duration"]
        seconds = None if is_whole else (round(start, 3), round(end, 3))
        yield Entry(replace(part, seconds=seconds), said.get("text"), said.get("speaker"), recording, str(path), line)


def _shar_parts(archive: Path) -> Iterator[AudioPart | None]:
    """Yield the audio of each cut of a Shar; its members come in pairs, data first."""
    with tarfile.open(archive, "r:") as file:
        for number, member in enumerate(_members(file)):
            if number % 2 == 0:
                has_audio = PurePosixPath(member.name).suffix != ".nodata"
                yield AudioPart(str(archive.absolute()), span=(member.offset_data, member.size)) if has_audio else None

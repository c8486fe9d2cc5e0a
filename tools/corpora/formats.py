"""Find out how a corpus is laid out, and read it."""

import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.corpora.archives import read_lhotse, read_parquet, read_webdataset
from tools.corpora.entries import AUDIO_SUFFIXES, Found
from tools.corpora.lists import (
    COMMON_VOICE_LISTS,
    WITHOUT_HEADER,
    delimiter_of,
    header_of,
    names_audio,
    read_common_voice,
    read_folder,
    read_librispeech,
    read_list,
    read_ljspeech,
)
from vita_audio.data.mixture import Problem

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
# Name of a layout -> its reader, and the files in a folder that it reads one by one; "": it reads the folder.
FORMATS: dict[str, tuple[Callable[[Path], Found], str]] = {
    "folder": (read_folder, ""),
    "ljspeech": (read_ljspeech, ""),
    "common_voice": (read_common_voice, ""),
    "librispeech": (read_librispeech, ""),
    "list": (read_list, "*"),
    "webdataset": (read_webdataset, "*.tar"),
    "parquet": (read_parquet, "*.parquet"),
    "lhotse": (read_lhotse, "*cuts*.jsonl*"),
}


def read_corpus(path: Path, name: str) -> Found:
    """Yield the recordings of a corpus, and a problem for each file or row that cannot be read.

    Args:
        name: One of `FORMATS`.
    """
    read, pattern = FORMATS[name]
    for file in [path] if path.is_file() or not pattern else _files(path, name):
        try:
            yield from read(file)
        except (ValueError, OSError, tarfile.TarError, EOFError, zlib.error) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Problem(str(file), 0, "unreadable file", f"it cannot be read as {name} to its end: {reason}")


def find_format(path: Path) -> str:
    """Return the name of the layout of a corpus.

    Raises: FileNotFoundError; ValueError for a compressed archive, an unknown kind of file or several lists.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.name.lower().endswith(COMPRESSED):
        raise ValueError(f"{path}: an archive must be a plain .tar to be read in place; decompress it, or unpack it")
    return _format_of_folder(path) if path.is_dir() else _format_of_file(path)


def _format_of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return "folder"
    if suffix in (".tar", ".parquet"):
        return "webdataset" if suffix == ".tar" else "parquet"
    if path.name.endswith(".jsonl.gz"):
        return "lhotse"
    if suffix in LIST_SUFFIXES:
        is_lhotse = suffix == ".jsonl" and {"start", "duration"} <= {*header_of(path)} and not names_audio(path)
        return "lhotse" if is_lhotse else "list"
    lists = ", ".join(LIST_SUFFIXES)
    raise ValueError(f"{path}: must be a folder, a recording, a .tar, .parquet or a list ({lists})")


def _format_of_folder(folder: Path) -> str:
    if (folder / "metadata.csv").is_file() and _is_ljspeech(folder / "metadata.csv"):
        return "ljspeech"
    if (folder / "clips").is_dir() and any((folder / name).is_file() for name in COMMON_VOICE_LISTS):
        return "common_voice"
    if any(folder.glob("*cuts*.jsonl*")):
        return "lhotse"
    for name, pattern in (("webdataset", "**/*.tar"), ("parquet", "**/*.parquet"), ("librispeech", "**/*.trans.txt")):
        if next(folder.glob(pattern), None):
            return name
    return "list" if _lists(folder) else "folder"


def _files(folder: Path, name: str) -> Sequence[Path]:
    """Return the files of a layout in a folder. Raises: ValueError if several lists could be meant."""
    if name != "list":
        return sorted(folder.rglob(FORMATS[name][1]))
    lists = _lists(folder)
    if len(lists) > 1:
        raise ValueError(f"{folder} has several lists ({', '.join(p.name for p in lists)}); give one of them as --from")
    return lists


def _lists(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in LIST_SUFFIXES and names_audio(path))


def _is_ljspeech(path: Path) -> bool:
    return not names_audio(path) or (header_of(path) is WITHOUT_HEADER and delimiter_of(path) == "|")

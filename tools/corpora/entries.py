"""What the readers of corpora yield: recordings with what is known of them, and problems of lists and archives."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vita_audio.data.audio_part import AudioPart
from vita_audio.data.mixture import Problem

AUDIO_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .caf .w64 .rf64 .sph .nist .voc".split()
)
# Names of columns and JSON fields in use, in order of preference; compared in lower case.
AUDIO_FIELDS = (
    "audio audio_filepath audio_path audio_file path file filename file_name wav wav_path wav_file wav_filename mp3 "
    "clip recording_path".split()
)
TEXT_FIELDS = "text sentence transcript transcription normalized_text text_normalized raw_text label".split()
SPEAKER_FIELDS = "speaker speaker_id speaker_name client_id spk spk_id voice".split()
RECORDING_FIELDS = "recording recording_id source session chapter book url".split()
MAX_TEXT_LENGTH = 10_000  # of a short recording; longer ones are lists with a missing quote


@dataclass(frozen=True)
class Entry:
    """A recording of a corpus.

    Attributes:
        audio: Where it lies; an absolute path.
        text: Its transcript, if it has one.
        speaker: Who speaks, if known.
        recording: The longer recording that it was cut from, if known.
        file: The list, archive or audio file that it was found in.
        line: Line of the list, or 0.
    """

    audio: AudioPart
    text: str | None = None
    speaker: str | None = None
    recording: str | None = None
    file: str = ""
    line: int = 0


Found = Iterator[Entry | Problem]


def entry_from_fields(
    fields: Mapping[str, Any], file: Path, line: int, folders: Iterable[Path] = ()
) -> Entry | Problem:
    """Return the recording that a row of a list describes, or what is wrong with the row.

    Args:
        folders: Folders in which its audio may lie, besides the folder of the list.
    """
    fields = {str(name).strip().lower(): value for name, value in fields.items() if name is not None}
    name = first_of(fields, AUDIO_FIELDS)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        return Problem(
            str(file), line, "no audio", f"one of {', '.join(AUDIO_FIELDS)} must name a file, got {name!r:.80}"
        )
    candidates = [(folder / name.strip()).absolute() for folder in (file.parent, *folders)]
    found = (path for path in candidates if os.path.isfile(AudioPart.parse(path).file))  # accepts any name
    part = AudioPart.parse(next(found, candidates[0]))
    try:
        seconds = _stretch(fields)
    except (KeyError, TypeError, ValueError) as error:
        return Problem(str(file), line, "no audio", f"offset and duration must be numbers of seconds: {error}")
    return Entry(replace(part, seconds=seconds or part.seconds), **labels(fields), file=str(file), line=line)


def labels(fields: Mapping[str, Any]) -> dict[str, str | None]:
    """Return text, speaker and recording of a row whose names are in lower case; lists and objects count as absent."""
    groups = {"text": TEXT_FIELDS, "speaker": SPEAKER_FIELDS, "recording": RECORDING_FIELDS}
    plain = {
        name: " ".join(str(value).split()) for name, value in fields.items() if isinstance(value, str | int | float)
    }
    return {name: first_of(plain, known) for name, known in groups.items()}


def first_of(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first value that is there and not empty, or None."""
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)


def _stretch(fields: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the part of a file that a row means, as NeMo's manifests give it.

    Raises: KeyError, TypeError, ValueError.
    """
    if (start := fields.get("offset", fields.get("start"))) in (None, ""):
        return None
    start = float(start)
    length, end = (fields.get(name) or None for name in ("duration", "end"))
    if not start and length is None and end is None:
        return None
    end = start + float(length) if length else float(fields["end"])
    if not 0 <= start < end:
        raise ValueError(f"got {start:g} to {end:g}")
    return start, end


def text_problem(text: str, max_length: int = MAX_TEXT_LENGTH) -> str | None:
    """Return what is wrong with a transcript, or None."""
    if "<|" in text:
        return f"a transcript must not hold special tokens, got {text!r:.80}"
    if "\ufffd" in text or any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return f"a transcript must be readable UTF-8, got {text!r:.80}"
    return f"a transcript of {len(text)} characters; is a quote missing?" if len(text) > max_length else None

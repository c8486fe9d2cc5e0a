"""What must pass before a change lands: every part runs, and the quick start starts from scratch."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_all_parts_run_and_nothing_is_taken_as_done(tmp_path):
    """In a checkout whose scripts, and a ruff in its environment, only record their arguments."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    program = f'#!/usr/bin/env bash\necho "$(basename "$0") $*" >> {tmp_path}/calls\n'
    for path in ("scripts/setup_env.sh", "scripts/quickstart.sh", "scripts/test.sh", ".venv/bin/ruff"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(program)
        (tmp_path / path).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "VENV"}
    subprocess.run(["bash", str(tmp_path / ".ci" / "run")], env=environment, check=True)
    calls = [line.strip() for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [
        "setup_env.sh",
        "ruff check .",
        "ruff format --check .",
        "quickstart.sh --ci --fresh",
        "test.sh --numprocesses 2 --dist loadfile --timeout 600",
    ]

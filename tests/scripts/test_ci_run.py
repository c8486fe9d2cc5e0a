"""What must pass before a change lands: every part runs, and the quick start starts from scratch."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """One whose scripts, and a ruff and a browser in its environment, only record their arguments."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    program = f'#!/usr/bin/env bash\necho "$(basename "$0") $*" >> {tmp_path}/calls\n'
    scripts = ("scripts/setup_env.sh", "scripts/quickstart.sh", "scripts/test.sh")
    for path in (*scripts, ".venv/bin/ruff", ".venv/bin/chromium"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(program)
        (tmp_path / path).chmod(0o755)
    return tmp_path


def run(checkout, browser=None, **changes):
    environment = {name: value for name, value in os.environ.items() if name not in ("VENV", "CHROMIUM")} | changes
    environment |= {"CHROMIUM": str(browser)} if browser else {}
    command = ["bash", str(checkout / ".ci" / "run")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    calls = (checkout / "calls").read_text() if (checkout / "calls").exists() else ""
    return result, [line.strip() for line in calls.splitlines()]


def test_all_parts_run_and_nothing_is_taken_as_done(checkout):
    result, calls = run(checkout, checkout / ".venv" / "bin" / "chromium")
    assert result.returncode == 0
    assert calls == [
        "setup_env.sh",
        "ruff check .",
        "ruff format --check .",
        "quickstart.sh --ci --fresh",
        "test.sh --numprocesses 2 --dist loadfile --timeout 600",
    ]


def test_without_a_browser_nothing_runs(checkout):
    """Otherwise all tests of the page would be skipped, and the rest would pass."""
    result, calls = run(checkout, "no-such-browser")
    assert result.returncode == 1 and calls == []
    assert result.stderr.count("\n") == 1 and "no no-such-browser" in result.stderr and "CHROMIUM" in result.stderr


def test_a_missing_browser_is_installed_where_that_is_possible(checkout):
    programs = checkout / "programs"
    programs.mkdir()
    for name in ("bash", "env", "dirname", "basename", "cp"):
        (programs / name).symlink_to(shutil.which(name))
    for name, command in (("id", "echo 0"), ("apt-get", f'[ "$1" = update ] || cp {programs}/id {programs}/chromium')):
        (programs / name).write_text(f"#!{programs}/bash\n{command}\n")
        (programs / name).chmod(0o755)
    (checkout / ".venv" / "bin" / "chromium").unlink()
    result, calls = run(checkout, PATH=str(programs))
    assert result.returncode == 0, result.stderr
    assert (programs / "chromium").exists() and calls[-1].startswith("test.sh")
    (programs / "chromium").unlink()
    (programs / "apt-get").unlink()
    result, calls = run(checkout, PATH=str(programs))
    assert result.returncode == 1 and "no chromium" in result.stderr

"""The script that gives a model a voice: what it installs, and what it passes on."""

import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_setup_env import make_program, stamp

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "scripts" / "requirements_voice.txt"


@pytest.fixture
def root(tmp_path):
    """A copy of the scripts with a finished environment."""
    root = tmp_path / "root"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("deepspeed"))
    shutil.copy(ROOT / "setup.py", root)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / ".installed").write_text(stamp())
    return root


@pytest.mark.parametrize("has_resemblyzer", [True, False])
def test_the_judge_is_installed_only_if_it_is_missing_and_all_options_arrive(root, tmp_path, has_resemblyzer):
    """The environment's Python writes down what it is asked for."""
    make_program(root / ".venv" / "bin" / "python", f'[ "$1" = -c ] && exit {int(not has_resemblyzer)}', 'echo "$*"')
    command = ["bash", str(root / "scripts" / "your_voice.sh"), "my recordings", "--dry_run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = f"-m tools.voice.your_voice --paths-from {tmp_path} my recordings --dry_run"
    install = f"-m pip install --quiet --no-deps --requirement {root}/scripts/requirements_voice.txt"
    assert result.stdout.splitlines() == ([run] if has_resemblyzer else [install, run])


def test_its_requirements_are_pinned():
    lines = [line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(str(Requirement(line).specifier).startswith("==") for line in lines) and len(lines) == 2

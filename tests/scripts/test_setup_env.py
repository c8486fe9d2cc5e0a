"""The environment script: nothing to do the second time, and one line for what is missing. It installs nothing here."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPTS = Path(__file__).parents[2] / "scripts"
REQUIREMENTS = SCRIPTS / "requirements_quickstart.txt"
NO_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has an NVIDIA driver")


def set_up(**variables) -> subprocess.CompletedProcess:
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    command = ["bash", str(SCRIPTS / "setup_env.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def make_program(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines]) + "\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def stamp() -> str:
    files = [REQUIREMENTS, SCRIPTS.parent / "setup.py", SCRIPTS / "setup_env.sh"]
    content = b"".join(file.read_bytes() for file in files)
    return subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode()


def test_a_finished_environment_is_left_alone(tmp_path):
    (tmp_path / ".installed").write_text(stamp())
    result = set_up(VENV=tmp_path, PYTHON="/nowhere/python")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            ['[ "$1" = --version ] && echo "Python 3.9.2" || exit 1'],
            "needs Python 3.10, 3.11 or 3.12, got Python 3.9.2",
        ),
        (['[ "$1" = -m ] && exit 1', "[[ $2 != *cuda* ]]"], "cannot make environments; install its venv module"),
    ],
)
def test_an_unfit_python_is_named(tmp_path, lines, message):
    result = set_up(VENV=tmp_path / "venv", PYTHON=make_program(tmp_path / "python", *lines))
    assert result.returncode == 1 and message in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_is_named(tmp_path):
    result = set_up(VENV=tmp_path / "venv", PYTHON=tmp_path / "python")
    assert result.returncode == 1 and f"no {tmp_path / 'python'}; set PYTHON" in result.stderr


def test_an_interrupted_installation_is_taken_up_and_torch_with_a_gpu_is_kept(tmp_path):
    """The environment's Python writes down what it is asked for; it answers every import, so it "sees" a GPU."""
    (tmp_path / "bin").mkdir()
    make_program(
        tmp_path / "bin" / "python",
        f'echo "$*" >> {tmp_path}/calls',
        '[ "$1" = -c ] && echo torch==2.9.1+cu130 || true',
    )
    result = set_up(VENV=tmp_path)
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text()
    assert "torch==2.13.0" not in calls
    assert (tmp_path / "torch_version.txt").read_text() == "torch==2.9.1+cu130\n"
    assert f"--constraint {tmp_path}/torch_version.txt --requirement {REQUIREMENTS}" in calls
    assert (tmp_path / ".installed").read_text() == stamp()


WITHOUT_GPU = ["torch==2.13.0+cpu", "--extra-index-url", "https://download.pytorch.org/whl/cpu"]


@pytest.mark.parametrize(
    "has_gpu, offered, expected",
    [
        pytest.param(False, "2.14.1+cpu, 2.13.0+cpu", WITHOUT_GPU, marks=NO_GPU),
        pytest.param(False, "2.14.1+cpu", ["torch==2.13.0"], marks=NO_GPU),
        pytest.param(False, None, ["torch==2.13.0"], marks=NO_GPU),
        (True, "2.13.0+cpu", ["torch==2.13.0"]),
    ],
)
def test_torch_for_cpu_only_where_there_is_no_gpu_and_it_can_be_had(tmp_path, has_gpu, offered, expected):
    """The environment's Python writes down what it is asked for, and `offered` is what an index of CPU builds has."""
    (tmp_path / "bin").mkdir()
    make_program(
        tmp_path / "bin" / "python",
        f'echo "$*" >> {tmp_path}/calls',
        '[ "$1" = -c ] && [[ $2 == *cuda* ]] && exit 1',
        f'[[ "$*" == *"index versions"* ]] && {f"echo {offered}" if offered else "exit 1"}',
        "exit 0",
    )
    (tmp_path / "programs").mkdir()
    if has_gpu:
        make_program(tmp_path / "programs" / "nvidia-smi")
    result = set_up(VENV=tmp_path, PATH=f"{tmp_path / 'programs'}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    installed = next(call for call in calls if " install " in call).split(f"--constraint {REQUIREMENTS} ")[1]
    assert installed.split() == expected
    assert ("cannot be reached" in result.stdout) == (not has_gpu and expected != WITHOUT_GPU)


def test_every_version_is_pinned_once_for_each_python():
    lines = [line.split("  #")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(requirement.specifier)) for requirement in requirements)
    for python in ("3.10", "3.11", "3.12"):
        names = [
            item.name for item in requirements if not item.marker or item.marker.evaluate({"python_version": python})
        ]
        assert len(names) == len(set(names))
        assert {"deepspeed", "transformers", "numpy", "pytest"} <= set(names)

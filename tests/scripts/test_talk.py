"""The script that starts a conversation: which model it takes, which environment, and what it installs."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_setup_env import make_program

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def root(tmp_path):
    """A copy of the scripts with an environment whose Python writes down what it is asked for."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("deepspeed"))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    make_program(tmp_path / ".venv" / "bin" / "python", '[ "$1" = -c ] || echo "$*"')
    return tmp_path


def talk(root, *options):
    command = ["bash", str(root / "scripts" / "talk.sh"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_without_a_model_it_says_how_to_make_one(root):
    result = talk(root)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "quickstart.sh" in result.stderr and "--model DIR" in result.stderr


@pytest.mark.parametrize("name", ["vita_audio/assets/demo_model", "outputs/quickstart/stage4"])
def test_a_model_that_is_there_is_taken(root, name):
    (root / name).mkdir(parents=True)
    (root / name / "config.json").touch()
    result = talk(root, "--port", "1")
    assert result.stdout == f"-m vita_audio.serve --open-page --model {root / name} --port 1\n"


def test_it_says_what_the_demo_model_can_talk_about(root):
    folder = root / "vita_audio" / "assets" / "demo_model"
    shutil.copytree(ROOT / "vita_audio" / "assets" / "demo_model", folder, ignore=shutil.ignore_patterns("model.*"))
    runs_code = f'case "$2" in *find_spec*) ;; *demo*) exec "{sys.executable}" "$@" ;; *) echo "$*" ;; esac'
    make_program(root / ".venv" / "bin" / "python", runs_code)
    demo = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    lines = talk(root).stdout.splitlines()
    assert lines[0] == demo["domain"] and [line.strip() for line in lines[2:-1]] == demo["questions"]
    assert lines[-1].startswith("-m vita_audio.serve --open-page --model ")


@pytest.mark.parametrize("options", [["--model", "some where"], ["--port", "1", "--model=x"], ["--help"]])
def test_a_given_model_is_used(root, options):
    assert talk(root, *options).stdout == f"-m vita_audio.serve --open-page {' '.join(options)}\n"


def test_an_environment_that_cannot_serve_is_not_used(root):
    make_program(root / ".venv" / "bin" / "python", "exit 1")
    (root / ".venv_talk" / "bin").mkdir(parents=True)
    program = make_program(
        root / ".venv_talk" / "bin" / "python",
        f'echo "$*" >> {root}/calls',
        '[ "$1" = -c ] && echo torch==2.9.1+cu130 || true',
    )
    shutil.copy(ROOT / "setup.py", root)
    result = talk(root, "--model", "x")
    assert result.returncode == 0, result.stderr
    calls = (root / "calls").read_text()
    assert f"--requirement {root}/scripts/requirements_talk.txt" in calls
    assert calls.splitlines()[-1] == "-m vita_audio.serve --open-page --model x" and program.exists()


def test_all_packages_of_the_server_are_installed_in_pinned_versions():
    def names(file):
        lines = (SCRIPTS / file).read_text(encoding="utf-8").splitlines()
        return {
            Requirement(line.split("#")[0]).name.lower().replace("_", "-") for line in lines if re.match(r"\w", line)
        }

    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    keywords = {node.arg: node.value for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    extra = {Requirement(text).name.replace("_", "-") for text in ast.literal_eval(keywords["extras_require"])["serve"]}
    needed = {Requirement(text).name.replace("_", "-") for text in ast.literal_eval(keywords["install_requires"])}
    talk = names("requirements_talk.txt")
    assert extra | {name.lower() for name in needed} - {"torch", "datasets"} == talk
    assert talk <= names("requirements_quickstart.txt")
    assert not talk & {"deepspeed", "ninja"}

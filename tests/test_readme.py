"""The README stays true: its tree names every file, and its links and commands point to files that exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## Files")[1].split("```")[1]
FOLDERS = ("vita_audio", "tools", "evaluation", "scripts")


def test_the_tree_names_every_source_file():
    files = [path for folder in FOLDERS for kind in ("*.py", "*.sh", "*.txt") for path in (ROOT / folder).rglob(kind)]
    files = [path for path in files if path.name != "__init__.py" and "sts_qwen25" not in path.parts]
    assert len(files) > 40
    assert [str(path.relative_to(ROOT)) for path in files if not re.search(rf"\b{re.escape(path.name)}\b", TREE)] == []


def test_the_tree_names_nothing_that_is_gone():
    present = {path.name for folder in (*FOLDERS, "configs") for path in (ROOT / folder).rglob("*")}
    present |= {path.name for path in ROOT.iterdir()}
    named = re.findall(r"[\w-]+\.(?:py|sh|txt|json|yaml|toml)\b", TREE)
    assert [name for name in named if name not in present] == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:bash|python) ([\w/]+\.(?:sh|py))", README))))
def test_commands_name_programs_that_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`(?:python -m )?(evaluation\.\w+)", README))))
def test_commands_name_modules_that_exist(module):
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_and_pictures_lead_to_files(path):
    assert (ROOT / path).is_file()


BLOCKS = "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = re.findall(r"^python ((?:tools|evaluation)/\w+\.py|-m evaluation\.\w+) (.+)$", BLOCKS, re.MULTILINE)


@pytest.mark.parametrize("program, arguments", COMMANDS)
def test_programs_accept_the_flags_of_their_commands(program, arguments):
    module = importlib.import_module(re.sub(r"tools/|-m |\.py$", "", program).replace("/", "."))
    if not hasattr(module, "parse_arguments"):
        pytest.skip(f"{program} has no function that only parses its arguments")
    module.parse_arguments(shlex.split(arguments, comments=True))


def test_the_environment_is_activated_before_the_first_command_that_needs_it():
    assert README.index("source .venv/bin/activate") < README.index("python tools/")


def test_folders_that_commands_write_are_ignored_by_git():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    written = set(re.findall(r"(?:--output |--local-dir |OUTPUT_ROOT=|DATA=)(\w+)/", BLOCKS))
    assert {"data", "outputs", "runs"} <= written <= ignored


def test_the_two_commands_come_first():
    commands = re.findall(r"^bash \S+", README, re.MULTILINE)
    assert commands[:2] == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    assert README.index("bash scripts/quickstart.sh") < 100

"""The README stays true: its tree names every file, and its links and commands point to files that exist."""

import re
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


def test_the_two_commands_come_first():
    commands = re.findall(r"^bash \S+", README, re.MULTILINE)
    assert commands[:2] == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    assert README.index("bash scripts/quickstart.sh") < 100

"""The READMEs stay true: commands and links in all of them lead to what exists, and every package introduces itself."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("vita_audio", "tools", "evaluation", "third_party")
FILES = [ROOT / "README.md", ROOT / "README_zh.md"]
for folder in (*PRODUCT, "benchmarks", "scripts"):
    FILES += sorted((ROOT / folder).rglob("README.md"))
READMES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
MAIN, CHINESE = READMES["README.md"], READMES["README_zh.md"]


def first_round(variable: str, value: str, body: str) -> str:
    """Return the commands of a loop with the first value of its variable."""
    return body.replace(f"${variable}", value).replace("; ", "\n")


def bash_blocks(text: str) -> str:
    """Return all bash blocks, one command a line, without the indentation of a list they stand in."""
    blocks = "".join(re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE))
    blocks = re.sub(
        r"for (\w+) in (\S+)[^;]*; do(.*?)done", lambda loop: first_round(*loop.groups()), blocks, flags=re.DOTALL
    )
    return re.sub(r"^ +", "", blocks.replace("\\\n", " "), flags=re.MULTILINE)


BLOCKS = {name: bash_blocks(text) for name, text in READMES.items()}
OURS = {name: block for name, block in BLOCKS.items() if not name.startswith("third_party/")}  # theirs run elsewhere
PROGRAM = r"^(?:torchrun (?:--\S+(?: \d+)? )*|python )((?:tools/|evaluation/|-m (?:tools|evaluation)\.)[\w./]+)(.*)$"
FOUND = [found for block in OURS.values() for found in re.findall(PROGRAM, block, re.MULTILINE)]
COMMANDS = sorted({(program, *shlex.split(arguments, comments=True)) for program, arguments in FOUND})


def module_name(program: str) -> str:
    return program.removeprefix("-m ").removesuffix(".py").replace("/", ".")


def test_the_main_readme_is_short():
    assert len(MAIN.splitlines()) <= 220


def test_every_folder_with_something_to_explain_has_a_readme():
    folders = ("data", "models", "audio_tokenizers", "speech_decoder")
    assert {f"vita_audio/{folder}/README.md" for folder in folders} < set(READMES)
    assert {"evaluation/README.md", "tools/codec/README.md", "benchmarks/README.md"} < set(READMES)


def test_the_ten_files_to_read_first_exist():
    section = MAIN.split("## Ten files to read first\n")[1].split("\n## ")[0]
    paths = re.findall(r"^\d+\. \[([^\]]+)\]\(\1\)", section, re.MULTILINE)
    assert len(paths) == 10
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    assert re.findall(r"^\d+\. \[([^\]]+)\]\(\1\)", CHINESE, re.MULTILINE) == paths


PROGRAMS = sorted(
    {match for text in READMES.values() for match in re.findall(r"\b(?:bash|python) ([\w./]+\.\w+)", text)}
)
MODULES = sorted(
    {match for text in READMES.values() for match in re.findall(r"-m ((?:tools|evaluation)\.\w+(?:\.\w+)*)", text)}
)


@pytest.mark.parametrize("path", [path for path in PROGRAMS if "run_audio.sh" not in path])
def test_commands_name_programs_that_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("module", MODULES)
def test_commands_name_modules_that_exist(module):
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("name", READMES)
def test_files_named_in_a_readme_exist(name):
    """Paths in backticks that begin at the root of the repository."""
    paths = re.findall(r"`((?:vita_audio|tools|evaluation|configs|scripts|tests|third_party)/[\w./-]+)`", READMES[name])
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", READMES)
def test_links_and_plots_lead_to_files(name):
    links = re.findall(r"\]\(([^)#:]+)(#[^)]*)?\)", READMES[name])
    for path, anchor in links:
        target = (ROOT / name).parent / path
        assert target.is_file(), path
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in ["#" + title.lower().replace(" ", "-") for title in titles], path + anchor


def test_there_are_commands_of_every_kind():
    programs = {command[0] for command in COMMANDS}
    assert {"tools/inference_sts.py", "-m evaluation.run", "-m tools.codec.train_decoder"} <= programs


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_programs_accept_the_flags_of_their_commands(command):
    program, *arguments = command
    module = importlib.import_module(module_name(program))
    if not hasattr(module, "parse_arguments"):
        pytest.skip(f"{program} has no function that only parses its arguments")
    module.parse_arguments(arguments)


SOURCES = sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", OURS)
def test_flags_named_in_a_sentence_exist(name):
    """Flags in backticks are in the source of a program, or are fields of the training arguments."""
    source = "".join(path.read_text(encoding="utf-8") for path in [*SOURCES, *(ROOT / "scripts").rglob("*.sh")])
    flags = re.findall(r"`(?:bash \S+ )?--([a-z][\w-]*)", READMES[name])
    assert [flag for flag in flags if f"--{flag}" not in source and f"{flag}: " not in source] == []


def test_the_environment_is_activated_before_the_first_command_that_needs_it():
    assert MAIN.index("source .venv/bin/activate") < MAIN.index("python tools/")


def test_folders_that_commands_write_are_ignored_by_git():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    outputs = r"(?:--output |--local-dir |--data |_(?:checkpoint|decoder).py \S+ |OUTPUT_ROOT=|DATA=)(\w+)/"
    written = {folder for block in OURS.values() for folder in re.findall(outputs, block)}
    assert {"data", "outputs", "runs", "weights"} <= written <= ignored


def test_the_two_commands_come_first():
    commands = re.findall(r"^bash \S+", MAIN, re.MULTILINE)
    assert commands[:2] == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    assert MAIN.index("bash scripts/quickstart.sh") < 100


def test_the_chinese_readme_has_the_same_code():
    """The same blocks in the same order, with comments of its own."""

    def code(text: str) -> list[str]:
        blocks = re.findall(r"^```(?:bash|python|json)\n.*?^```", text, re.DOTALL | re.MULTILINE)
        return [re.sub(r" *#.*", "", block) for block in blocks]

    assert code(CHINESE) == code(MAIN)
    assert len(re.findall(r"^## ", CHINESE, re.MULTILINE)) == len(re.findall(r"^## ", MAIN, re.MULTILINE))


def test_the_chinese_readme_has_the_same_results():
    def numbers(text: str) -> list[list[str]]:
        return [re.findall(r"[\d.]+(?: %)?", row) for row in re.findall(r"^\|.*%.*\|$", text, re.MULTILINE)]

    assert numbers(CHINESE) == numbers(MAIN)


def test_every_module_and_package_has_a_docstring():
    assert len(SOURCES) > 100
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []

"""The house: modules import only what lies below them, and nothing that is optional when they are imported."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "vita_audio"
# The rooms of the package, from the bottom up; neighbours in a row do not know each other.
LAYERS = (
    ("constants", "interleave", "resample", "files", "optional", "stopwatch"),
    ("speech_decoder", "speech_features", "errors", "plots"),
    ("text", "models", "audio_tokenizers"),
    ("data",),
    ("checkpoints", "training", "inference"),
    ("command_line",),
    ("serve", "workers"),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
# What the modules of a folder may import of this project; the longest name that fits counts.
MAY_IMPORT = {
    "vita_audio": ("vita_audio",),
    "evaluation": ("vita_audio", "evaluation"),
    "tools": ("vita_audio",),
    "tools.corpora": ("vita_audio", "evaluation", "tools.common", "tools.corpora"),
    "tools.common": ("vita_audio", "tools.common"),
    "tools.demo": ("vita_audio", "evaluation", "tools.common", "tools.demo"),
    "tools.voice": (
        "vita_audio",
        "evaluation",
        "tools.common",
        "tools.codec",
        "tools.demo.domain",
        "tools.demo.steps",
        "tools.voice",
    ),
    "tools.codec": ("vita_audio", "evaluation", "tools.common", "tools.demo.domain", "tools.codec"),
}
FOLDERS = (PACKAGE, "evaluation", "tools")
IMPORTED_AS = {
    "pyyaml": {"yaml"},
    "datasets": {"datasets", "pyarrow"},
    "fastapi": {"fastapi", "pydantic", "starlette"},
}  # where it is not the name of the requirement
# Needed by some tool, stage or codec only.
OPTIONAL = (
    *("matplotlib", "deepspeed", "flash_attn", "s3tokenizer", "snac", "sparktts", "onnx"),
    *("peft", "jiwer", "faster_whisper", "piper", "parselmouth", "wonderwords", "ray", "silero_vad"),
)
PATH_EDITS = re.compile(r"sys\.path\b|PYTHONPATH")


def imports(path: Path, root: Path = ROOT, *, lazy: bool) -> Iterator[str]:
    """Yield the full names that a file imports, such as vita_audio.text.ROLES; `lazy`: also inside functions."""
    package = list(path.relative_to(root).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{name.name}" for name in node.names)


def lies_in(name: str, folder: str) -> bool:
    return f"{name}.".startswith(f"{folder}.")


def wrong_imports(path: Path, root: Path = ROOT) -> list[str]:
    """Return what a module imports of this project that it may not, by folder or, in the package, by layer."""
    own = ".".join(path.relative_to(root).with_suffix("").parts)
    allowed = MAY_IMPORT[max((folder for folder in MAY_IMPORT if lies_in(own, folder)), key=len)]
    wrong = []
    for name in imports(path, root, lazy=True):
        if not any(lies_in(name, folder) for folder in FOLDERS):
            continue
        if not any(lies_in(name, folder) for folder in allowed):
            wrong.append(name)
        elif lies_in(own, PACKAGE):
            room, other = own.split(".")[1], name.split(".")[1]
            if other != room and LEVELS[other] >= LEVELS[room]:
                wrong.append(name)
    return wrong


def sources(*folders: str, pattern: str = "*.py") -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob(pattern))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_has_a_layer_and_every_layer_a_module():
    top = {path.stem for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert top - {"__init__"} == LEVELS.keys()


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=name_of)
def test_imports_point_down(path):
    assert wrong_imports(path) == []


@pytest.mark.parametrize(
    "place, line, wrong",
    [
        ("vita_audio/models/a.py", "from vita_audio.data.audio import load_audio", "vita_audio.data.audio.load_audio"),
        ("vita_audio/training/a.py", "def f():\n    import vita_audio.inference.a", "vita_audio.inference.a"),
        ("vita_audio/text.py", "from .models import surgery", "vita_audio.models.surgery"),
        ("vita_audio/speech_decoder/b/a.py", "from ...checkpoints import a", "vita_audio.checkpoints.a"),
        ("vita_audio/interleave.py", "from vita_audio import text", "vita_audio.text"),
        ("vita_audio/data/a.py", "import evaluation.run", "evaluation.run"),
        ("vita_audio/inference/a.py", "from .b import c\nfrom ..data import audio", None),
        ("vita_audio/text.py", "from vita_audio.files.checkpoint import check_whole", None),
        ("evaluation/a.py", "from tools.demo import domain", "tools.demo.domain"),
        ("evaluation/metrics/a.py", "from evaluation.run import b\nfrom vita_audio import text", None),
        ("tools/a.py", "import tools.codec.texts", "tools.codec.texts"),
        ("tools/a.py", "from evaluation import run", "evaluation.run"),
        ("tools/common/a.py", "from tools.demo import plan", "tools.demo.plan"),
        ("tools/demo/a.py", "from tools import codec", "tools.codec"),
        ("tools/demo/a.py", "from evaluation import run\nfrom tools.common import b", None),
        ("tools/codec/a.py", "from tools.demo import plan", "tools.demo.plan"),
        ("tools/codec/a.py", "from tools.demo.domain import SIZES\nfrom . import b", None),
    ],
)
def test_the_rule_tells_right_from_wrong(tmp_path, place, line, wrong):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert wrong_imports(path, tmp_path) == ([wrong] if wrong else [])


@pytest.mark.parametrize("path", sources(*FOLDERS, pattern="__init__.py"), ids=name_of)
def test_every_package_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [*sources(*FOLDERS), *sources("scripts", pattern="*.sh")], ids=name_of)
def test_nothing_edits_the_import_path(path):
    assert PATH_EDITS.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sources(PACKAGE), ids=name_of)
def test_modules_begin_with_what_the_package_requires(path):
    """Other packages are imported inside the function that needs them; a folder may have an extra of its own name."""
    keywords = {
        node.arg: node.value
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword)
    }
    extras = ast.literal_eval(keywords["extras_require"])
    needed = ast.literal_eval(keywords["install_requires"]) + extras.get(path.relative_to(ROOT / PACKAGE).parts[0], [])
    required = [re.match("[A-Za-z_-]+", requirement)[0] for requirement in needed]
    assert "transformers" in required
    known = {PACKAGE, *sys.stdlib_module_names}.union(*(IMPORTED_AS.get(name, {name}) for name in required))
    assert {name.split(".")[0] for name in imports(path, lazy=False)} - known == set()


def test_all_modules_import_without_optional_packages():
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import {PACKAGE}
names = [module.name for module in pkgutil.walk_packages({PACKAGE}.__path__, "{PACKAGE}.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= len([path for path in sources(PACKAGE) if path.name != "__init__.py"])

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
# From the bottom up; neighbours in a row do not know each other. The longest name that fits is that of a module.
LAYERS = (
    ("constants", "interleave", "resample", "files", "optional"),
    ("plots",),
    ("speech_decoder",),
    ("text", "models", "audio_tokenizers"),
    ("checkpoints",),
    ("data",),
    ("training", "inference", "errors", "command_line"),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
IMPORTED_AS = {"pyyaml": {"yaml"}, "datasets": {"datasets", "pyarrow"}}  # where it is not the name of the requirement
# Needed by some tool, stage or codec only.
OPTIONAL = (
    *("matplotlib", "deepspeed", "flash_attn", "s3tokenizer", "snac", "sparktts", "onnx", "kaldi_native_fbank"),
    *("jiwer", "faster_whisper", "piper", "parselmouth", "wonderwords"),
)


def layer_of(module: str) -> str:
    """Return the layer of `vita_audio.text` and the like: the longest name of LAYERS that it lies in."""
    parts = module.split(".")[1:]
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next(name for name in names if name in LEVELS)


def imports(path: Path, root: Path = ROOT, *, lazy: bool) -> Iterator[str]:
    """Yield the full names of modules that a file imports; `lazy`: also inside functions."""
    package = list(path.relative_to(root).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{name.name}" for name in node.names) if module == PACKAGE else [module]


def wrong_imports(path: Path, root: Path = ROOT) -> list[str]:
    """Return what a module of the package imports from its own height or above."""
    own = layer_of(".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
    others = [name for name in imports(path, root, lazy=True) if name.startswith(f"{PACKAGE}.")]
    return [name for name in others if layer_of(name) != own and LEVELS[layer_of(name)] >= LEVELS[own]]


def sources() -> list[Path]:
    return sorted(path for path in (ROOT / PACKAGE).rglob("*.py") if path != ROOT / PACKAGE / "__init__.py")


def test_every_module_has_a_layer_and_every_layer_a_module():
    top = {path.stem for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert top - {"__init__"} == {name.split(".")[0] for name in LEVELS}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT / PACKAGE)))
def test_imports_point_down(path):
    assert wrong_imports(path) == []


@pytest.mark.parametrize(
    "place, line, wrong",
    [
        ("models/a.py", "from vita_audio.data.audio import load_audio", "vita_audio.data.audio"),
        ("training/a.py", "def f():\n    import vita_audio.inference.pipeline", "vita_audio.inference.pipeline"),
        ("text.py", "from .models import surgery", "vita_audio.models"),
        ("speech_decoder/b/a.py", "from ...checkpoints import loading", "vita_audio.checkpoints"),
        ("interleave.py", "from vita_audio import text", "vita_audio.text"),
        ("inference/a.py", "from .b import c\nfrom ..data import audio", None),
        ("text.py", "from vita_audio.files.checkpoint import check_whole", None),
    ],
)
def test_the_rule_tells_right_from_wrong(tmp_path, place, line, wrong):
    path = tmp_path / PACKAGE / place
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert wrong_imports(path, tmp_path) == ([wrong] if wrong else [])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT / PACKAGE)))
def test_modules_begin_with_what_the_package_requires(path):
    """Other packages are imported inside the function that needs them; tools and evaluation never."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    required = re.findall(r'^ +"([A-Za-z_-]+)', setup.split("install_requires=[")[1].split("]")[0], re.MULTILINE)
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
    assert int(result.stdout) >= len([path for path in sources() if path.name != "__init__.py"])

"""The bounds for GPU training hold the versions that the tests run with, and every requirement of the package."""

import ast
import re
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILE = ROOT / "requirements_ds_gpu.txt"
LINES = [line.split("#")[0].strip() for line in FILE.read_text(encoding="utf-8").splitlines()]
REQUIREMENTS = {Requirement(line).name.lower(): Requirement(line) for line in LINES if line}


def test_every_bound_has_two_sides_and_holds_what_is_installed():
    for name, requirement in REQUIREMENTS.items():
        assert requirement.specifier.contains(version(name), prereleases=True), requirement
        assert re.search("<", str(requirement.specifier)) or name == "ninja", requirement  # a build tool


def setup_values():
    keywords = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword)]
    return {node.arg: node.value for node in keywords}


def test_the_extras_in_hints_exist_under_names_that_every_pip_finds():
    """setuptools writes an underscore as a hyphen, and pip 23.0 of Python 3.11 skips the name with the underscore."""
    folders = ("vita_audio", "evaluation", "tools", "scripts")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".sh")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"(?:vita-audio|'\.)\[([a-z][a-z0-9_-]*)\]", text))
    extras = set(ast.literal_eval(setup_values()["extras_require"]))
    assert {"serve", "evaluation-languages"} <= named <= extras
    assert not [name for name in extras if "_" in name]


def test_the_package_has_the_same_lower_bounds():
    values = setup_values()
    extras = ast.literal_eval(values["extras_require"])
    needed = ast.literal_eval(values["install_requires"]) + extras["plots"]  # every training draws its curves
    assert set(extras["plots"]) <= set(extras["evaluation"])
    bounds = {item.name: lower_bound(item) for item in map(Requirement, needed) if item.specifier}
    assert "matplotlib" in bounds and bounds == {name: lower_bound(REQUIREMENTS[name]) for name in bounds}


def lower_bound(requirement):
    return next((part.version for part in requirement.specifier if part.operator == ">="), None)


def test_nothing_that_the_package_needs_is_forgotten():
    needed = {Requirement(text).name.lower() for text in requires("vita-audio") if "extra ==" not in text}
    assert needed - {"huggingface_hub"} <= set(REQUIREMENTS)  # which transformers brings

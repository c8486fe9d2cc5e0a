"""The bounds for GPU training hold the versions that the tests run with, and every requirement of the package."""

import re
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

FILE = Path(__file__).parents[2] / "requirements_ds_gpu.txt"
LINES = [line.split("#")[0].strip() for line in FILE.read_text(encoding="utf-8").splitlines()]
REQUIREMENTS = {Requirement(line).name.lower(): Requirement(line) for line in LINES if line}


def test_every_bound_has_two_sides_and_holds_what_is_installed():
    for name, requirement in REQUIREMENTS.items():
        assert requirement.specifier.contains(version(name), prereleases=True), requirement
        assert re.search("<", str(requirement.specifier)) or name == "ninja", requirement  # a build tool


def test_nothing_that_the_package_needs_is_forgotten():
    needed = {Requirement(text).name.lower() for text in requires("vita-audio") if "extra ==" not in text}
    assert needed - {"huggingface_hub"} <= set(REQUIREMENTS)  # which transformers brings

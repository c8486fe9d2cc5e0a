"""Packages that may be missing or need what is missing."""

import sys
from pathlib import Path

import pytest
from tiny_folders import MAKE_FOLDERS, PACKAGES

from vita_audio.optional import MissingPackageError, import_optional


def test_missing_packages_are_named_with_the_extra_that_brings_them():
    with pytest.raises(MissingPackageError, match=r"snac24khz needs the package nowhere .*'vita-audio\[snac24"):
        import_optional("nowhere.to_be_found", extra="snac24khz")


def test_every_type_that_needs_a_package_has_an_extra():
    text = (Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
    assert PACKAGES.keys() == MAKE_FOLDERS.keys() - {"glm4voice"}
    assert [name for name in PACKAGES if f'"{name}": [' not in text] == []


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that imports a module that is absent and one that is broken, and uses neither."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_reader.py").write_text("raise OSError('no such library')\n", encoding="utf-8")
    (tmp_path / "package_of_others.py").write_text("import json, broken_reader, absent_reader\n", encoding="utf-8")
    yield "package_of_others"
    sys.modules.pop("package_of_others", None)


def test_unused_imports_of_a_package_may_be_absent_or_broken(package):
    with pytest.raises(OSError, match="no such library"):
        import_optional(package, extra="snac24khz")
    unused = ("absent_reader", "broken_reader", "json")
    module = import_optional(package, extra="snac24khz", unused=unused)
    assert module.json.dumps({}) == "{}"  # what works is not replaced
    assert "absent_reader" not in sys.modules and "broken_reader" not in sys.modules and "json" in sys.modules

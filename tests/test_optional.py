"""Packages that may be missing or need what is missing."""

import sys

import pytest

from vita_audio.optional import MissingPackageError, require


def test_missing_packages_are_named_with_what_to_install():
    with pytest.raises(MissingPackageError, match=r"the codec needs the package nowhere \(No .*\); pip install it"):
        require("nowhere.to_be_found", purpose="the codec", install="it")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that imports a module that is absent and one that is broken, and uses neither."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_reader.py").write_text("raise OSError('no such library')\n", encoding="utf-8")
    (tmp_path / "package_of_others.py").write_text("import json, broken_reader, absent_reader\n", encoding="utf-8")
    yield "package_of_others"
    sys.modules.pop("package_of_others", None)


def test_unused_imports_of_a_package_may_be_absent_or_broken(package):
    with pytest.raises(MissingPackageError, match="needs the package package_of_others .no such library"):
        require(package, purpose="a test", install="it")
    unused = ("absent_reader", "broken_reader", "json")
    module = require(package, purpose="a test", install="it", unused=unused)
    assert module.json.dumps({}) == "{}"  # what works is not replaced
    assert "absent_reader" not in sys.modules and "broken_reader" not in sys.modules and "json" in sys.modules

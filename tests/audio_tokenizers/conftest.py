"""Folders of tiny random weights for every test here."""

from collections import UserDict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_folders import MAKE_FOLDERS, PACKAGES


class Folders(UserDict):
    """Name of a type -> its tokenizer folder and decoder folder, random weights; made when asked for."""

    def __init__(self, make_folder):
        super().__init__()
        self._make_folder = make_folder

    def __missing__(self, name: str) -> tuple[Path, Path | None]:
        for package in PACKAGES.get(name, ()):
            if find_spec(package) is None:
                pytest.skip(f"needs the package {package}: pip install 'vita-audio[{name}]'")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self[name] = MAKE_FOLDERS[name](self._make_folder(name))
        return self[name]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp)

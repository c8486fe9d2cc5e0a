"""Folders of tiny random weights for every test here."""

from pathlib import Path

import pytest
import torch
from tiny_folders import MAKE_FOLDERS


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Name of a type -> its tokenizer folder and decoder folder, random weights."""
    torch.manual_seed(0)
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKE_FOLDERS.items()}

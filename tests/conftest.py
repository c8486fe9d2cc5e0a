"""Fixtures shared by several test folders."""

import lzma
import shutil
from pathlib import Path

import pytest
from toy_speech_lm import ToyFolders, make_toy_folders

ASSETS = Path(__file__).parent / "assets"


@pytest.fixture(scope="session")
def toy_folders(tmp_path_factory) -> ToyFolders:
    return make_toy_folders(tmp_path_factory.mktemp("toy_speech_lm"))


@pytest.fixture(scope="session")
def qwen2_folder(tmp_path_factory) -> Path:
    """The real Qwen2.5 tokenizer."""
    folder, source = tmp_path_factory.mktemp("qwen2"), ASSETS / "qwen2_tokenizer"
    (folder / "tokenizer.json").write_bytes(lzma.decompress((source / "tokenizer.json.xz").read_bytes()))
    shutil.copy(source / "tokenizer_config.json", folder)
    return folder

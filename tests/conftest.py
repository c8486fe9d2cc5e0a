"""Fixtures shared by several test folders."""

import pytest
from toy_speech_lm import ToyFolders, make_toy_folders


@pytest.fixture(scope="session")
def toy_folders(tmp_path_factory) -> ToyFolders:
    return make_toy_folders(tmp_path_factory.mktemp("toy_speech_lm"))

import pytest
from toy_speech_lm import load_toy, make_toy_folders

from vita_audio.text import CONTINUOUS_INPUT


@pytest.fixture(scope="module")
def speech_lm(toy_folders):
    return load_toy(toy_folders)


@pytest.fixture(scope="session")
def plus_folders(tmp_path_factory):
    """Folders of a model with continuous input."""
    return make_toy_folders(tmp_path_factory.mktemp("plus"), audio_input=CONTINUOUS_INPUT)

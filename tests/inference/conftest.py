import pytest
from toy_speech_lm import load_toy


@pytest.fixture(scope="module")
def speech_lm(toy_folders):
    return load_toy(toy_folders)

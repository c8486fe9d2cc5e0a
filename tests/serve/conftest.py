"""A server of a tiny model."""

import pytest
from toy_server import serve
from toy_speech_lm import load_toy


@pytest.fixture(scope="package")
def speech_lm(toy_folders):
    return load_toy(toy_folders)


@pytest.fixture(scope="module")
def server(speech_lm):
    with serve(speech_lm) as server:
        yield server

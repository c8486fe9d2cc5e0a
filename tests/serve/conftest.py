"""A server of a tiny model, and a browser."""

from pathlib import Path

import pytest
from page_browser import browser
from toy_server import serve
from toy_speech_lm import load_toy


@pytest.fixture(scope="package")
def speech_lm(toy_folders):
    return load_toy(toy_folders)


@pytest.fixture(scope="session")
def demo_model():
    """The folder of the model of the package."""
    return Path(__file__).parents[2] / "vita_audio" / "assets" / "demo_model"


@pytest.fixture(scope="module")
def server(speech_lm):
    with serve(speech_lm) as server:
        yield server


@pytest.fixture(scope="module")
def playwright():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def chromium(playwright):
    """A browser whose microphone hears beeps."""
    with browser(playwright) as chromium:
        yield chromium

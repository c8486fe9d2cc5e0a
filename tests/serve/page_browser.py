"""The page in Chromium with a fake microphone; `CHROMIUM` names the browser."""

import base64
import json
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import soundfile
import soxr

CHROMIUM = which(os.environ.get("CHROMIUM") or "chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

SPEECH = Path(__file__).parents[1] / "assets" / "speech_tokenizer" / "vq_wav" / "speech_short.wav"
MICROPHONE_RATE = 48_000  # of the browser's fake microphone
TIMEOUT = 120_000  # ms


def words_said(seconds=1.5):
    wave, rate = soundfile.read(SPEECH)
    return soxr.resample(wave[: int(seconds * rate)], rate, MICROPHONE_RATE)


def silence(seconds):
    return np.zeros(int(seconds * MICROPHONE_RATE))


@contextmanager
def browser(playwright, folder=None, *said, lead=1, allows_microphone=True):
    """Start a browser whose microphone hears some waves, `lead` s after it is opened; they are written to `folder`."""
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--autoplay-policy=no-user-gesture-required"]
    if said:
        path = folder / "microphone.wav"
        soundfile.write(path, np.concatenate([silence(lead), *said, silence(30)]), MICROPHONE_RATE, subtype="PCM_16")
        arguments += [f"--use-file-for-fake-audio-capture={path}%noloop"]
    if allows_microphone:
        arguments += ["--use-fake-ui-for-media-stream"]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def opened(browser, server, *, url=None, sounds=None, events=None, **options):
    """Open the page in a context of its own; any error of its scripts fails the test.

    Args:
        sounds: Gets the sound of each response.
        events: Gets what the page sends.
        options: Of the browser's context.
    """
    with browser.new_context(**options) as context:
        page, errors = context.new_page(), []
        page.set_default_timeout(TIMEOUT)
        page.on("pageerror", lambda error: errors.append(str(error)))
        if sounds is not None:
            page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: hear(frame, sounds)))
        if events is not None:
            page.on("websocket", lambda socket: socket.on("framesent", lambda frame: events.append(json.loads(frame))))
        page.goto(url or server.url)
        wait_for(page, "ready")
        yield page
        assert errors == []


def hear(frame, sounds):
    """Collect the sound of each response."""
    event = json.loads(frame)
    if event["type"] == "response.created":
        sounds.append([])
    elif event["type"] == "response.output_audio.delta":
        sounds[-1].append(base64.b64decode(event["delta"]))


def wait_for(page, state):
    page.wait_for_selector(f"#status[data-state={state}]")


def ask(page, text="hello"):
    page.fill("#text", text)
    page.press("#text", "Enter")


def download(page):
    """Return the downloaded conversation's turns, and its file."""
    with page.expect_download() as download:
        page.click("#download")
    file = zipfile.ZipFile(download.value.path())
    assert file.testzip() is None
    return json.loads(file.read("conversation.json"))["turns"], file


def answer_of(page, number=0):
    """Wait until an answer has ended, and return its turn."""
    page.locator(".message.assistant[data-status]").nth(number).wait_for()
    return [turn for turn in download(page)[0] if turn["role"] == "assistant"][number]

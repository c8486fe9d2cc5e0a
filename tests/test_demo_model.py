"""The model that comes with the package: small, described, and able to answer a question of its domain."""

import json
from pathlib import Path

import pytest

from tools.demo.domain import ENGLISH as domain
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import GREEDY, SpeechLM
from vita_audio.inference.tasks import asr_conversation, sts_conversation
from vita_audio.serve.words import bare_words

FOLDER = Path(__file__).parents[1] / "vita_audio" / "assets" / "demo_model"
QUESTIONS = Path(__file__).parent / "assets" / "demo_model"  # held-out renderings
MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def speech_lm():
    return SpeechLM.from_pretrained(FOLDER, get_audio_tokenizer("glm4voice"), "cpu")


def test_it_is_small():
    assert (FOLDER / "model.safetensors").stat().st_size <= MOST_BYTES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES + 500_000


def test_it_says_what_it_can_talk_about():
    demo = json.loads((FOLDER / "demo.json").read_text(encoding="utf-8"))
    assert demo.keys() == {"domain", "questions", "bare_words", "system_prompt", "max_turns"} and demo["domain"]
    assert demo["bare_words"] and not demo["system_prompt"] and demo["max_turns"] == 1
    asked = domain.questions("demo")
    known = {text for item in asked for text in (*item.phrasings, item.held_out_phrasing)}
    assert len(set(demo["questions"])) == 10
    assert {bare_words(text) for text in demo["questions"]} <= known
    (answer,) = {word for word in domain.outside.answer.split() if word == domain.outside.keyword}
    assert answer in demo["domain"]


def test_its_modules_are_those_that_its_plan_uses(speech_lm):
    plan = speech_lm.model.generation_config.mtp_inference_mode
    assert tuple(plan) == (1, 10, 4, 10) and speech_lm.model.config.num_nextn_predict_layers == 5


@pytest.mark.parametrize(
    ("question", "answer"), [("in", "the capital of france is paris"), ("out", domain.outside.answer)]
)
def test_it_answers_aloud(speech_lm, question, answer):
    response = speech_lm.respond(sts_conversation(QUESTIONS / f"{question}side.flac"), **GREEDY)
    assert response.text.strip() == answer
    assert len(response.wave) / response.sample_rate == pytest.approx(len(answer.split()) * 0.35, rel=0.5)


def test_it_hears_a_quiet_microphone(speech_lm):
    import soundfile

    wave, rate = soundfile.read(QUESTIONS / "inside.flac", dtype="float32")
    response = speech_lm.respond(asr_conversation((0.05 * wave, rate)), **GREEDY)
    assert response.text.strip() == "what is the capital of france"

"""Conversations of the tasks, against the token ids of the reference's prompts."""

import json
from pathlib import Path

import pytest

from vita_audio.data.chat import encode_prompt
from vita_audio.inference.tasks import TASKS, make_conversation
from vita_audio.interleave import InterleavePlan
from vita_audio.text import LUKE_SYSTEM, TextTokenizer

ASSETS = Path(__file__).parents[1] / "assets" / "prompts"
PROMPTS = json.loads((ASSETS / "prompts.json").read_text(encoding="utf-8"))
CHATS = {case["conversation"]: case for case in PROMPTS["chats"]}
CODES, EVALUATION = PROMPTS["codes"], PROMPTS["evaluation"]
ENGLISH = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.from_pretrained(ASSETS, 16384)


def prompt_ids(conversation, tokenizer):
    plan = InterleavePlan.parse("boost")
    return encode_prompt(conversation, tokenizer, lambda codes, role: tokenizer.audio_ids(codes), plan)[0]


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "asr",
        "tts",
        "voice",
        "empty_system",
        "system_in_middle",
        "one_turn",
        "system_multi",
        "zh",
        "asr_system",
        "prompted_tts",
        "empty_user",
    ],
)
def test_chat_equals_reference(tokenizer, name):
    case = CHATS[name]
    assert prompt_ids({"messages": case["messages"]}, tokenizer) == case["input_ids"]


def test_leading_newline_is_encoded_as_in_training(tokenizer):
    """The reference's chat template joins it with the newline of the header; its training data, and we, do not."""
    case = CHATS["whitespace"]
    ids = prompt_ids({"messages": case["messages"]}, tokenizer)
    assert ids != case["input_ids"] and tokenizer.base.decode(ids) == tokenizer.base.decode(case["input_ids"])


def test_recognition_equals_reference(tokenizer):
    """The reference's samples ask with a newline before the audio."""
    for name, expected in zip(("q1", "q2"), EVALUATION["asr.jsonl"], strict=True):
        assert prompt_ids(make_conversation("asr", audio=CODES[name]), tokenizer) == expected


def test_spoken_questions_equal_reference(tokenizer):
    for name, expected in zip(("q3", "q1"), EVALUATION["sqa.jsonl"], strict=True):
        assert prompt_ids(make_conversation("sts", audio=CODES[name], system="omni"), tokenizer) == expected


def test_synthesis_equals_reference(tokenizer):
    texts = ["简单地说，这相当于惠普把消费领域市场拱手相让了。", "四是四，十是十，十四是十四，四十是四十。", ENGLISH]
    for text, expected in zip(texts, EVALUATION["evaluate_seedtts"], strict=True):
        assert prompt_ids(make_conversation("tts", text=text), tokenizer) == expected
    assert prompt_ids(make_conversation("tts", text=ENGLISH), tokenizer) == EVALUATION["libritts.jsonl"][0]


def test_voice_prompt_equals_reference(tokenizer):
    conversation = make_conversation("tts", text="Good morning", voice_prompt=[9, 8])
    assert prompt_ids(conversation, tokenizer) == CHATS["prompted_tts"]["input_ids"]


def test_named_system_message_equals_reference(tokenizer):
    expected = CHATS["sqa_vita_demo"]["input_ids"]
    system = expected[: expected.index(tokenizer.im_start_id, 1)]
    ids = prompt_ids(make_conversation("sts", audio=CODES["q1"], system="luke"), tokenizer)
    assert ids[: len(system)] == system
    assert make_conversation("text", text="Hi", system="luke")["messages"][0]["content"] == LUKE_SYSTEM


def test_voice_prompt_comes_before_the_question(tokenizer):
    """The reference's continuous-input code swaps them."""
    conversation = make_conversation("sts", audio=[1, 2], voice_prompt=[9, 8], text="Listen:")
    assert tokenizer.split(prompt_ids(conversation, tokenizer))[1] == [9, 8, 1, 2]
    assert conversation["messages"][-1] == {"role": "user", "content": "Listen:\n<|audio|>"}


def test_own_system_message():
    conversation = make_conversation("text", text="Hi", system="Be brief.")
    assert [message["content"] for message in conversation["messages"]] == ["Be brief.", "Hi"]


@pytest.mark.parametrize(
    ("task", "inputs", "message"),
    [
        ("song", {"text": "la"}, "unknown task 'song'; known are text, asr, tts, sts"),
        ("asr", {}, "task asr needs audio, got none"),
        ("tts", {}, "task tts needs text, got none"),
        ("tts", {"text": " \n"}, r"text of task tts must not be empty, got ' \\n'"),
        ("text", {"text": ""}, "text of task text must not be empty"),
        ("asr", {"audio": [1], "text": "x"}, "task asr has no use for text"),
        ("text", {"text": "x", "voice_prompt": [1]}, "task text has no use for voice_prompt"),
        ("tts", {"text": "x", "voice_prompt": [1], "system": "luke"}, "give voice_prompt or system, not both"),
        ("sts", {"audio": "  "}, "audio of task sts must not be empty"),
    ],
)
def test_wrong_inputs_are_refused(task, inputs, message):
    with pytest.raises(ValueError, match=message):
        make_conversation(task, **inputs)


def test_every_task_makes_a_conversation(tokenizer):
    for name, task in TASKS.items():
        for more in [(), *((optional,) for optional in task.optional)]:
            inputs = {key: [3] if key in ("audio", "voice_prompt") else "seven" for key in task.required + more}
            assert prompt_ids(make_conversation(name, **inputs), tokenizer)

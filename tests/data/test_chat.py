"""Samples to ids and labels, against the reference and by rule."""

import json
import lzma
from pathlib import Path
from types import SimpleNamespace

import pytest

from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.chat import SampleError, _lay_out_answer, encode_conversation, encode_prompt
from vita_audio.interleave import InterleavePlan
from vita_audio.text import TTS_PROMPT, VOICE_PROMPT_SYSTEM, TextTokenizer

ASSETS = Path(__file__).parents[1] / "assets"
CASES = json.loads((ASSETS / "data/preprocess.json").read_text(encoding="utf-8"))["cases"]
INTERVALS = [  # without audio, or with markers that do not belong together
    case
    for case in json.loads((ASSETS / "data/text_audio_interval.json").read_text(encoding="utf-8"))["cases"]
    if case["audio_start_id"] not in case["input_ids"] or case.get("raises") == "AssertionError"
]
BOOST = InterleavePlan.parse("boost")

# Where this code differs on purpose; the text that the differing answer must have is in the tests below.
DIFFERENT = {
    "tts_then_chat": "the text of a TTS turn leaks into later answers",
    "tts_already_has_text": "an answer that has the text gets it twice",
    "tts_human_gpt_roles": "the TTS rule ignores the role names human and gpt",
    "tts_no_newline_after_instruction": "the instruction becomes part of the spoken text",
    "sqa_empty_answer_audio": "an answer whose audio has no codes loses its text",
    "more_audios_than_tags": "surplus audio is ignored",
    "tag_but_no_audios": "a tag without audio stays as text",
    "no_messages_not_begin": "a sample without messages is an empty document",
    "default_system_message_used": "there is no default system message",
    "conversations_null_and_messages": "a null under conversations is a crash",
    "broken_user_audio": "raised by the audio reader, see test_packing",
}


def kind(case):
    return case["name"].split("/")[0]


def plan_of(case):
    return InterleavePlan.parse(case["ratio"] or BOOST)


@pytest.fixture(scope="module")
def tokenizers():
    load = TextTokenizer.from_pretrained
    return {
        "glm4voice": load(ASSETS / "tiny_tokenizer", 16384),
        "sensevoice_glm4voice": load(ASSETS / "tiny_tokenizer", 16384, continuous_input=True),
        None: load(ASSETS / "tiny_tokenizer", 0),
    }


def audio_ids_of(case, tokenizer):
    def audio_ids(path, role):
        entry = case["audio_table"][path]
        if tokenizer.context_of_audio_id is not None and role != "assistant":
            return [tokenizer.context_of_audio_id] * (entry["frames"] + 4)
        return tokenizer.audio_ids(entry["tokens"])

    return audio_ids


EQUAL = [case for case in CASES if kind(case) not in DIFFERENT]


@pytest.mark.parametrize("case", [c for c in EQUAL if "raises" not in c], ids=lambda case: case["name"])
def test_ids_and_labels_equal_reference(case, tokenizers):
    tokenizer = tokenizers[case["audio_tokenizer_type"]]
    encoded = encode_conversation(case["sample"], tokenizer, audio_ids_of(case, tokenizer), plan_of(case))
    assert encoded.input_ids == case["input_ids"]
    assert encoded.labels == case["labels"]
    assert encoded.loss_weights is None
    continuous = [span for span in encoded.audio_spans if case["audio_indices"] and span.role != "assistant"]
    assert [[span.start + 1, span.num_ids] for span in continuous] == case["audio_indices"]


@pytest.mark.parametrize("name", ["glm4voice", "sensevoice_glm4voice", None])
def test_ids_and_labels_with_the_real_vocabulary_equal_reference(name, qwen2_folder):
    """The same samples; the file has the reference's ids by the name of the case."""
    tokenizer = TextTokenizer.from_pretrained(
        qwen2_folder, 16384 if name else 0, continuous_input=name == "sensevoice_glm4voice"
    )
    expected = json.loads(lzma.decompress((ASSETS / "qwen2_tokenizer/preprocess.json.xz").read_bytes()))
    cases = [case for case in EQUAL if case["audio_tokenizer_type"] == name and case["name"] in expected]
    assert len(cases) >= (3 if name is None else 30)
    for case in cases:
        encoded = encode_conversation(case["sample"], tokenizer, audio_ids_of(case, tokenizer), plan_of(case))
        assert {"input_ids": encoded.input_ids, "labels": encoded.labels} == expected[case["name"]], case["name"]


@pytest.mark.parametrize("case", [c for c in EQUAL if "raises" in c], ids=lambda case: case["name"])
def test_what_breaks_the_reference_is_a_clear_error(case, tokenizers):
    tokenizer = tokenizers[case["audio_tokenizer_type"]]
    with pytest.raises(SampleError, match=r"needs|must|may hold|no audio codes"):
        encode_conversation(case["sample"], tokenizer, audio_ids_of(case, tokenizer), plan_of(case))


@pytest.mark.parametrize("case", INTERVALS, ids=lambda case: case["name"])
def test_answers_without_one_audio_are_left_alone_or_refused(case):
    """The cases of the reference's interleaving that are not about the ratio; the others are in test_interleave."""
    markers = SimpleNamespace(begin_of_audio_id=case["audio_start_id"], end_of_audio_id=case["audio_end_id"])
    if "output" in case:
        assert _lay_out_answer(case["input_ids"], [], markers, plan_of(case)) == (case["output"], [])
    else:
        with pytest.raises(SampleError, match="may hold one audio, begin before end"):
            _lay_out_answer(case["input_ids"], [], markers, plan_of(case))


def sample(*contents, audios=(), roles=("user", "assistant")):
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": messages, "audios": list(audios)}


@pytest.fixture
def decode(tokenizer):
    """Return the learnt text of each assistant turn; an audio is given as its number of codes."""

    def decode(sample, plan=BOOST):
        encoded = encode_conversation(sample, tokenizer, lambda count, role: tokenizer.audio_ids([5] * count), plan)
        learnt = [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != IGNORE_INDEX]
        return [tokenizer.decode(turn) for turn in split(learnt, tokenizer.im_end_id)]

    return decode


def split(ids, separator):
    turns, turn = [], []
    for token_id in ids:
        if token_id == separator:
            turns.append(turn)
            turn = []
        elif turn or token_id != ids[-1]:  # the newline after a turn
            turn.append(token_id)
    return turns


def test_tts_text_does_not_leak_into_later_turns(decode):
    chat = sample(TTS_PROMPT + "Good morning.", "<|audio|>", "Hi!", "Hello.", "And?", "a<|audio|>", audios=[20, 3])
    assert decode(chat) == ["Good morning.", "Hello.", "a"]


def test_tts_text_is_for_one_answer(decode):
    chat = sample(TTS_PROMPT + "Good morning.", "<|audio|>", audios=[20, 3])
    chat["messages"].append({"role": "assistant", "content": "<|audio|>"})
    assert decode(chat) == ["Good morning.", ""]


def test_tts_text_is_added_once(decode):
    assert decode(sample(TTS_PROMPT + "Good morning.", "Good morning.\n<|audio|>", audios=[20])) == ["Good morning.\n"]


def test_tts_text_is_not_added_to_a_written_answer(decode):
    assert decode(sample(TTS_PROMPT + "Good morning.", "I cannot speak.")) == ["I cannot speak."]


def test_tts_rule_holds_for_all_role_names(decode):
    spoken = sample(TTS_PROMPT + "Good morning.", "<|audio|>", audios=[20], roles=("human", "gpt"))
    assert decode(spoken) == ["Good morning."]


def test_tts_instruction_is_never_spoken(decode):
    assert decode(sample("Convert the text to speech. Good morning.", "<|audio|>", audios=[20])) == ["Good morning."]


def test_answer_with_empty_audio_keeps_its_text(decode):
    assert decode(sample("Hi", "a long answer in words<|audio|>", audios=[0])) == ["a long answer in words"]


def test_null_conversations_fall_back_to_messages(decode):
    assert decode({**sample("Hi", "Hello."), "conversations": None}) == ["Hello."]


def test_encoding_leaves_the_sample_alone(tokenizer):
    original = sample(TTS_PROMPT + "Good morning.", "<|audio|>", audios=[20])
    copy = json.loads(json.dumps(original))
    first, second = (encode_conversation(original, tokenizer, lambda c, r: [7] * c, BOOST) for _ in range(2))
    assert original == copy and first == second


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "must be a JSON object, got list"),
        ({"text": "x"}, "needs a list of messages under conversations or messages"),
        ({"messages": []}, "needs a list of messages"),
        ({"messages": "hi"}, "needs a list of messages"),
        ({"messages": [{"role": "user"}]}, "needs role and content"),
        ({"messages": [{"content": "x"}]}, "needs role and content"),
        ({"messages": ["hi"]}, "needs role and content"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "role must be one of system, user, assistant, human, gpt, got 'tool'",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, r"content must be text, got \['x'\]"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be text, got None"),
        (sample("<|audio|> <|audio|>", "ok", audios=[3]), "got 2 tags, 1 audios"),
        (sample("<|audio|>", "ok"), "got 1 tags, 0 audios"),
        (sample("<|audio|>", "ok", audios=[3, 4]), "got 1 tags, 2 audios"),
        ({**sample("hi", "ok"), "audios": "a.wav"}, "audios must be a list"),
        (sample("hi", "a<|audio|>b<|audio|>", audios=[3, 4]), "got 2 begin, 2 end markers"),
        (sample("hi", "a<|end_of_audio|><|begin_of_audio|>"), "begin before end"),
    ],
)
def test_bad_sample_is_one_clear_error(bad, message, tokenizer):
    with pytest.raises(SampleError, match=message):
        encode_conversation(bad, tokenizer, lambda count, role: [7] * count, BOOST)


def test_user_audio_is_learnt_with_its_weight(tokenizer):
    chat = {
        "messages": [
            {"role": "system", "content": VOICE_PROMPT_SYSTEM},
            {"role": "user", "content": "Listen: <|audio|>"},
            {"role": "assistant", "content": "Yes.<|audio|>"},
        ],
        "audios": [[1, 2], [3, 4, 5], [6, 7]],
    }
    encoded = encode_conversation(
        chat, tokenizer, lambda codes, role: tokenizer.audio_ids(codes), BOOST, user_audio_loss_weight=0.25
    )
    plain = encode_conversation(chat, tokenizer, lambda codes, role: tokenizer.audio_ids(codes), BOOST)
    user_codes = tokenizer.audio_ids([3, 4, 5])
    assert encoded.input_ids == plain.input_ids
    assert [i for i, w in zip(encoded.labels, encoded.loss_weights, strict=True) if w == 0.25] == user_codes
    for position, weight in enumerate(encoded.loss_weights):
        expected = encoded.input_ids[position] if weight == 0.25 else plain.labels[position]
        assert encoded.labels[position] == expected
        assert weight in (0.0, 0.25, 1.0) and (weight == 0.0) == (encoded.labels[position] == IGNORE_INDEX)


def test_prompt_is_the_beginning_of_the_training_document(tokenizer):
    chat = sample("<|audio|>", "Yes.<|audio|>", "And <|audio|>?", "No.<|audio|>", audios=[3, 20, 4, 5])
    document = encode_conversation(chat, tokenizer, lambda count, role: tokenizer.audio_ids([1] * count), BOOST)
    asked = {"messages": chat["messages"][:-1], "audios": chat["audios"][:-1]}
    prompt, spans = encode_prompt(asked, tokenizer, lambda count, role: tokenizer.audio_ids([1] * count), BOOST)
    assert document.input_ids[: len(prompt)] == prompt
    assert spans == document.audio_spans[:-1] and len(spans) == 3
    assert document.labels[len(prompt) :] == document.input_ids[len(prompt) :]
    with pytest.raises(SampleError, match="must not end with an assistant turn"):
        encode_prompt(chat, tokenizer, lambda count, role: [7] * count, BOOST)


def test_audio_spans_cover_the_markers(tokenizer):
    chat = sample("Hear <|audio|> now", "one two three four five six<|audio|>", audios=[3, 40])
    encoded = encode_conversation(chat, tokenizer, lambda count, role: tokenizer.audio_ids([1] * count), BOOST)
    question, answer = encoded.audio_spans
    assert (question.num_ids, answer.num_ids) == (3, 40)
    for span in (question, answer):
        assert encoded.input_ids[span.start] == tokenizer.begin_of_audio_id
        assert encoded.input_ids[span.stop - 1] == tokenizer.end_of_audio_id
        inside = encoded.input_ids[span.start : span.stop]
        assert sum(tokenizer.is_audio(i) for i in inside) == span.num_ids

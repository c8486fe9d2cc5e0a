"""Answers whose tokens come from an engine are those of the same model here; what an engine cannot do is refused."""

from itertools import zip_longest

import pytest
import torch
from engine_stub import MAX_LENGTH, run_engine
from toy_conversations import CONVERSATIONS, PLUS_CONVERSATIONS, codes_of, text_of, wave_of
from toy_speech_lm import load_toy
from transformers import GenerationConfig

from vita_audio.inference.engine import EngineLM, engine_options
from vita_audio.inference.prompts import ChatState

ANSWER = {"max_new_tokens": 40}


@pytest.fixture
def engine(speech_lm):
    with run_engine(speech_lm.model) as engine:
        yield engine


@pytest.fixture
def engine_lm(engine, speech_lm, toy_folders):
    return EngineLM.connect(engine.url, toy_folders.model, speech_lm.audio_tokenizer)


def test_answers_are_those_of_the_backbone(speech_lm, engine_lm):
    expected = speech_lm.respond_batch(CONVERSATIONS, "vanilla", **ANSWER)
    for response, other in zip(engine_lm.respond_batch(CONVERSATIONS, **ANSWER), expected, strict=True):
        assert (response.text, response.codes, response.ids) == (other.text, other.codes, other.ids)
        assert torch.equal(response.wave, other.wave)
        assert response.timings.counts == other.timings.counts


def test_only_what_reads_continuous_audio_has_weights(engine_lm, engine, plus_folders, speech_lm):
    assert all(parameter.is_meta for parameter in engine_lm.model.parameters())
    plus = EngineLM.connect(engine.url, plus_folders.model, speech_lm.audio_tokenizer)
    loaded = {name.split(".")[1] for name, parameter in plus.model.named_parameters() if not parameter.is_meta}
    assert loaded == {"embed_tokens", "audio_model", "audio_projection"}


def test_continuous_audio_is_encoded_here(plus_folders):
    plus_lm = load_toy(plus_folders)
    expected = plus_lm.respond_batch(PLUS_CONVERSATIONS, "vanilla", **ANSWER)
    with run_engine(plus_lm.model) as engine:
        engine_lm = EngineLM.connect(engine.url, plus_folders.model, plus_lm.audio_tokenizer)
        engine_lm.model.generation_config.repetition_penalty = 1.3  # of a checkpoint; the engine would get it wrong
        found = engine_lm.respond_batch(PLUS_CONVERSATIONS, **ANSWER)
        with pytest.raises(ValueError, match="repetition_penalty must be 1 for a prompt with .*, got 1.2"):
            engine_lm.respond(PLUS_CONVERSATIONS[0], repetition_penalty=1.2)
    assert [response.ids for response in found] == [response.ids for response in expected]
    assert [request["repetition_penalty"] for request in engine.requests if "prompt_embeds" in request] == [1, 1]
    assert [request["repetition_penalty"] for request in engine.requests if "prompt" in request] == [1.3]


def test_streams_at_once_are_those_of_the_backbone(speech_lm, engine_lm):
    streams = [engine_lm.stream(conversation, **ANSWER) for conversation in CONVERSATIONS]
    answers = zip(*zip_longest(*streams), strict=True)  # one chunk of each in turn
    for chunks, conversation in zip(answers, CONVERSATIONS, strict=True):
        chunks = [chunk for chunk in chunks if chunk is not None]
        expected = list(speech_lm.stream(conversation, "vanilla", **ANSWER))
        assert text_of(chunks) == text_of(expected) and codes_of(chunks) == codes_of(expected)
        assert torch.equal(wave_of(chunks), wave_of(expected))


def test_a_state_knows_the_prompt_and_turns_continue(speech_lm, engine_lm):
    state, expected, answers = ChatState(), [], []
    for lm, states, found in ((engine_lm, state, answers), (speech_lm, None, expected)):
        messages = []
        for question in ("hello", "and now"):
            messages.append({"role": "user", "content": question})
            answer = lm.respond({"messages": messages}, "vanilla", state=states, **ANSWER)
            messages.append(answer.message)
            found.append(answer.ids)
    assert answers == expected
    assert state.keys == speech_lm.prompt_ids({"messages": messages[:-1]})


def test_the_engine_gets_the_options_of_the_checkpoint_and_of_the_caller(engine, engine_lm, speech_lm):
    engine_lm.respond(CONVERSATIONS[0], **ANSWER)
    request = engine.requests[0]
    assert request["prompt"] == speech_lm.prompt_ids(CONVERSATIONS[0]) and request["model"] == "toy"
    assert request["temperature"] == 0 and request["max_tokens"] == 40 and request["stream"]
    assert request["stop_token_ids"] == speech_lm.model.generation_config.eos_token_id
    stored = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.05)
    given = {"max_new_tokens": 5, "eos_token_id": 3, "temperature": 0.5}
    assert engine_options(given, stored) == {
        "max_tokens": 5,
        "stop_token_ids": [3],
        "repetition_penalty": 1.05,
        "temperature": 0.5,
        "top_k": 50,  # as `generate` does where neither says anything
        "top_p": 0.8,
    }


def test_a_closed_stream_leaves_the_engine(engine, engine_lm):
    engine.may_go_on.clear()
    stream = engine_lm.stream(CONVERSATIONS[2], decode_audio=False, max_new_tokens=200)
    next(stream)
    stream.close()
    engine.may_go_on.set()
    assert engine.left.wait(timeout=60)


def test_stopping_criteria_end_an_answer(engine_lm):
    whole = engine_lm.respond(CONVERSATIONS[0], **ANSWER).ids
    lengths = []

    def after_six(ids, scores):
        lengths.append(ids.shape[1])
        return torch.tensor([len(lengths) == 6])

    assert engine_lm.respond(CONVERSATIONS[0], stopping_criteria=[after_six], **ANSWER).ids == whole[:6]
    assert lengths == list(range(lengths[0], lengths[0] + 6))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"plan": "boost"}, "the plan is the engine's, got 'boost'; leave it out, or give vanilla"),
        ({"acceptance": 0.0}, "acceptance must be 1 with an engine, got 0.0"),
        ({"first_chunk": "committed"}, "first_chunk must be verified with an engine, got committed"),
        ({"num_beams": 2}, "got num_beams; leave them out"),
        ({"mtp_head": "audio"}, "got module_context, module_tokens|got module_tokens"),
        ({"max_new_tokens": MAX_LENGTH}, f"must fit into the model's {MAX_LENGTH} positions, got a prompt of"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_it_is_asked(engine, engine_lm, options, message):
    with pytest.raises(ValueError, match=message):
        engine_lm.stream(CONVERSATIONS[0], **options)
    assert engine.requests == []


def test_options_that_change_nothing_are_accepted(engine_lm):
    for options in ({"acceptance": 1}, {"first_chunk": "verified"}, {"mtp_head": "full"}, {"plan": "vanilla"}):
        assert engine_lm.respond(CONVERSATIONS[0], **options, **ANSWER).ids


def test_errors_of_the_engine_reach_the_caller(engine, engine_lm):
    engine.error = "the prompt is too long"
    with pytest.raises(ValueError, match="refused /v1/completions: the prompt is too long"):
        engine_lm.stream(CONVERSATIONS[0])
    engine.error, engine.ends_after = None, 3
    with pytest.raises(ConnectionError, match="ended the connection within an answer"):
        engine_lm.respond(CONVERSATIONS[0], **ANSWER)


def test_without_an_engine_the_error_says_what_to_do(engine, speech_lm, toy_folders):
    engine.models = {"data": [{"id": "other"}]}
    with pytest.raises(ValueError, match="must be a vLLM server"):
        EngineLM.connect(engine.url, toy_folders.model, speech_lm.audio_tokenizer)
    with pytest.raises(ConnectionError, match=r"no engine at http://127.0.0.1:9 \(.*\); bash scripts/serve_vllm.sh"):
        EngineLM.connect("http://127.0.0.1:9", toy_folders.model, speech_lm.audio_tokenizer)

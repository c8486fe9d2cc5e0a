"""Answers whose tokens the backbone verifies: complete, in batches, streamed, in several turns."""

import pytest
import torch
from toy_conversations import CONVERSATIONS, codes_of, text_of, wave_of
from toy_speech_lm import load_toy, make_toy_folders

from vita_audio.inference.prompts import ChatState
from vita_audio.inference.tasks import make_conversation
from vita_audio.text import CONTINUOUS_INPUT

OPTIONS = {"max_new_tokens": 40}


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    return load_toy(make_toy_folders(tmp_path_factory.mktemp("plus"), audio_input=CONTINUOUS_INPUT))


@pytest.fixture(params=["discrete", "plus"])
def talker(request, speech_lm):
    """A model and conversations for it."""
    if request.param == "discrete":
        return speech_lm, CONVERSATIONS
    noise = [0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in (20_000, 9_000)]
    asked = [make_conversation("sts", audio=(noise[0], 16_000), voice_prompt=(noise[1], 16_000))]
    asked += [make_conversation("asr", audio=(noise[1], 16_000)), make_conversation("tts", text="Hello")]
    return request.getfixturevalue("plus"), asked


@pytest.mark.parametrize("plan", ["boost", "turbo", [2, 3]], ids=str)
def test_acceptance_one_answers_as_the_backbone_alone(talker, plan):
    model, conversations = talker
    expected = [response.ids for response in model.respond_batch(conversations, "vanilla", **OPTIONS)]
    verified = {"plan": plan, "acceptance": 1, **OPTIONS}
    assert [response.ids for response in model.respond_batch(conversations, **verified)] == expected
    assert [model.respond(conversation, **verified).ids for conversation in conversations] == expected
    for conversation, ids in zip(conversations, expected, strict=True):
        assert [token_id for chunk in model.stream(conversation, **verified) for token_id in chunk.ids] == ids
    assert expected != [response.ids for response in model.respond_batch(conversations, plan, **OPTIONS)]


@pytest.mark.parametrize("acceptance", [0.2, 0.6])
def test_batches_and_streams_equal_single_answers(talker, acceptance):
    model, conversations = talker
    options = {"acceptance": acceptance, **OPTIONS}
    alone = [model.respond(conversation, "boost", **options) for conversation in conversations]
    batch = model.respond_batch(conversations, "boost", **options)
    assert [response.ids for response in batch] == [response.ids for response in alone]
    assert [response.timings.counts for response in batch] == [response.timings.counts for response in alone]
    for conversation, response in zip(conversations, alone, strict=True):
        chunks = list(model.stream(conversation, "boost", **options))
        assert text_of(chunks) == response.text and codes_of(chunks) == response.codes
        stream = model.audio_tokenizer.stream()
        assert torch.equal(wave_of(chunks), torch.cat([stream.push(response.codes), stream.flush()]))


def test_what_is_reported(speech_lm):
    response = speech_lm.respond(CONVERSATIONS[0], "boost", acceptance=0.2, **OPTIONS)
    counts = response.timings.counts
    assert counts.num_tokens == response.timings.num_tokens == len(response.ids)
    assert 1 < counts.tokens_per_pass == len(response.ids) / response.timings.num_backbone_passes
    assert any(0 < share < 1 for share in counts.acceptance_by_depth)
    committed = speech_lm.respond(CONVERSATIONS[0], "boost", **OPTIONS).timings.counts
    assert committed.acceptance_by_depth == () and committed.tokens_per_pass > counts.tokens_per_pass


def test_the_first_chunk_need_not_wait_for_its_verification(speech_lm):
    """It is what committed decoding hands on; without the option nothing is handed on before the second pass."""
    passes, first_audio, codes = [], {}, {}
    handle = speech_lm.model.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(1))
    for first_chunk in ("committed", "verified"):
        passes.clear()
        stream = speech_lm.stream(CONVERSATIONS[0], "turbo", acceptance=1, first_chunk=first_chunk, **OPTIONS)
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            if chunk.codes:
                first_audio.setdefault(first_chunk, len(passes))
        codes[first_chunk] = [token_id for chunk in chunks for token_id in chunk.ids]
    handle.remove()
    assert first_audio["committed"] < first_audio["verified"]
    assert codes["committed"][:5] == speech_lm.respond(CONVERSATIONS[0], "turbo", **OPTIONS).ids[:5]
    assert codes["verified"] == speech_lm.respond(CONVERSATIONS[0], "vanilla", **OPTIONS).ids


@pytest.mark.parametrize("acceptance", [0.2, 1])
def test_turns_with_a_state_equal_turns_without(speech_lm, acceptance):
    state, messages = ChatState(), []
    for question in ("Hello", "and now", "again"):
        messages = [*messages, {"role": "user", "content": question}]
        options = {"plan": "boost", "acceptance": acceptance, "max_new_tokens": 15}
        anew = speech_lm.respond({"messages": messages, "audios": []}, **options)
        stream = speech_lm.stream({"messages": messages, "audios": []}, state=state, **options)
        ids = [token_id for chunk in stream for token_id in chunk.ids]
        assert ids == anew.ids
        messages.append(anew.message)
    assert state.decoding.num_read[0] > 60


@pytest.mark.parametrize("acceptance", [-0.1, 1.5, float("nan"), "1"])
def test_acceptance_outside_its_range_is_refused_at_once(speech_lm, acceptance):
    for call in (speech_lm.respond, speech_lm.stream):
        with pytest.raises(ValueError, match="acceptance must be a number from 0 to 1, got"):
            call(CONVERSATIONS[0], acceptance=acceptance)


@pytest.mark.parametrize("acceptance", [0, 0.2, 1])
def test_a_head_for_audio_scores_audio_on_module_steps_only(talker, acceptance):
    model, conversations = talker
    tokenizer = model.tokenizer
    options = {"acceptance": acceptance, "mtp_head": "audio", **OPTIONS}
    audio = {*tokenizer.code_ids, tokenizer.begin_of_audio_id, tokenizer.end_of_audio_id}
    audio |= {tokenizer.im_end_id, tokenizer.pad_id}
    alone = [model.respond(conversation, "boost", **options).ids for conversation in conversations]
    assert [response.ids for response in model.respond_batch(conversations, "boost", **options)] == alone
    full = [response.ids for response in model.respond_batch(conversations, "boost", **options | {"mtp_head": "full"})]
    if acceptance == 1:
        assert alone == full
    elif acceptance == 0:
        by_modules = [[{*ids[1:5], *ids[6:10]} for ids in answers] for answers in (alone, full)]
        assert all(ids <= audio for ids in by_modules[0]) and not all(ids <= audio for ids in by_modules[1])


@pytest.mark.parametrize("acceptance", [0, 0.2, 1])
def test_the_default_head_cannot_change_an_answer(talker, acceptance):
    """At acceptance 1 the modules score audio only where audio goes before; nobody but the drafts can tell."""
    model, conversations = talker
    options = {"acceptance": acceptance, **OPTIONS}
    default = model.respond_batch(conversations, "boost", **options)
    full = model.respond_batch(conversations, "boost", **options, mtp_head="full")
    assert [response.ids for response in default] == [response.ids for response in full]
    same_drafts = [response.timings.counts for response in default] == [response.timings.counts for response in full]
    assert same_drafts or acceptance == 1


def test_an_unknown_head_is_an_error(speech_lm):
    with pytest.raises(ValueError, match="mtp_head must be full or audio, got 'text'"):
        speech_lm.respond(CONVERSATIONS[0], mtp_head="text")

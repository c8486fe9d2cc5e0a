"""The entry for evaluation harnesses: the answers of SpeechLM, whatever the form and the order of the requests."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from vita_audio.inference.harness import HarnessModel, cut_before, make_request
from vita_audio.inference.pipeline import MAX_NEW_TOKENS
from vita_audio.inference.tasks import asr_conversation, sts_conversation, text_conversation

SHORT = {"max_gen_toks": 12}


@pytest.fixture(scope="module")
def wave():
    return np.random.default_rng(0).standard_normal(16_000) * 0.1


@pytest.fixture(scope="module")
def path(wave, tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(path, wave, 16_000, subtype="FLOAT")
    return str(path)


def answer(speech_lm, conversation, plan=None, **options):
    greedy = {"do_sample": False, "max_new_tokens": 12, "repetition_penalty": 1.0} | options
    return speech_lm.respond(conversation, plan, decode_audio=False, **greedy).text.strip()


def test_answers_come_in_the_order_of_the_requests(speech_lm, path):
    """Lengths differ, so that batches are not in that order."""
    model = HarnessModel(speech_lm, batch_size=2)
    requests = [
        ("say one", SHORT),
        ("Convert the speech to text.", SHORT, {"audio": [path]}),
        ("say two", {"max_gen_toks": 5}),
        ("say three and more", SHORT),
        SimpleNamespace(args=("say four", {"max_gen_toks": 5})),
    ]
    texts = ("say one", None, "say two", "say three and more", "say four")
    expected = [
        answer(
            speech_lm,
            text_conversation(text) if text else asr_conversation(path),
            max_new_tokens=5 if number in (2, 4) else 12,
        )
        for number, text in enumerate(texts)
    ]
    assert model.generate_until(requests) == expected and len(set(expected)) > 2


def test_forms_of_audio_and_text_mean_the_same(path, wave):
    conversation = sts_conversation(path, text="what is said?")
    for audio in (path, {"path": path}):
        assert make_request("what is said?", {}, {"audio": [audio]}).conversation == conversation
    for audio in ({"array": wave, "sampling_rate": 16_000}, {"array": wave.tolist(), "sampling_rate": 16_000}):
        request = make_request("what is said?", {}, {"audio": [audio]})
        assert request.conversation["messages"] == conversation["messages"]
        ((heard, rate),) = request.conversation["audios"]
        assert np.allclose(heard, wave) and heard.dtype == np.float32 and rate == 16_000
    placed = make_request("<audio> and <audio>", {}, [path, path], system="omni").conversation
    assert [message["role"] for message in placed["messages"]] == ["system", "user"]
    assert placed["messages"][1]["content"] == "<|audio|> and <|audio|>"
    assert make_request("", {}, [path]).conversation == sts_conversation(path)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}),
        ({"temperature": 0.0, "max_gen_toks": 7}, {"do_sample": False, "max_new_tokens": 7}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"temperature": 0.5, "do_sample": False}, {"do_sample": False, "temperature": None}),
        ({"do_sample": True, "top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
    ],
)
def test_a_request_is_greedy_unless_it_asks_to_sample(given, expected):
    generation = make_request("a", given).generation
    assert {name: generation[name] for name in expected} == expected
    assert ("temperature" in generation) == ("temperature" in expected or not expected["do_sample"])


def test_an_answer_ends_before_the_first_stop(speech_lm):
    assert cut_before("a\n\nb. c", ["\n\n", "."]) == "a" and cut_before("a", ["b", ""]) == "a"
    whole = HarnessModel(speech_lm).generate_until([("say one", SHORT)])[0]
    stop = whole[len(whole) // 2 :]
    assert stop and HarnessModel(speech_lm).generate_until([("say one", SHORT | {"until": stop})]) == [
        whole[: whole.find(stop)]
    ]


def test_plan_and_system_reach_the_model(speech_lm):
    model = HarnessModel(speech_lm, "vanilla", system="luke")
    response = model.respond("say one", **SHORT)
    assert response.timings.num_backbone_passes == response.timings.num_tokens
    conversation = text_conversation("say one", system="luke")
    assert response.text.strip() == answer(speech_lm, conversation, "vanilla")
    assert response.wave is not None and len(response.wave) == len(speech_lm.audio_tokenizer.decode(response.codes))
    other = answer(speech_lm, text_conversation("say one", system="omni"), "vanilla")
    assert model.generate_until([("say one", SHORT)], system="omni") == [other]


def test_options_of_decoding_reach_the_model(speech_lm):
    verified = HarnessModel(speech_lm, "boost", acceptance=1, mtp_head="audio").respond("say one", **SHORT)
    backbone = HarnessModel(speech_lm, "vanilla").respond("say one", **SHORT)
    assert verified.ids == backbone.ids and sum(verified.timings.counts.num_verified) > 0
    with pytest.raises(ValueError, match="acceptance must be a number from 0 to 1, got 2"):
        HarnessModel(speech_lm, "boost", acceptance=2).generate_until([("say one", SHORT)])


def test_errors_are_raised_or_count_as_wrong(speech_lm, path, tmp_path, caplog):
    model = HarnessModel(speech_lm)
    requests = [("say one", SHORT), ("hear", SHORT, {"audio": [str(tmp_path / "none.wav")]}), ("say two", SHORT)]
    with pytest.raises(FileNotFoundError, match="none.wav"):
        model.generate_until(requests)
    good = model.generate_until([requests[0], requests[2]])
    assert model.generate_until(requests, skip_errors=True) == [good[0], "", good[1]]
    assert "none.wav" in caplog.text


@pytest.mark.parametrize(
    "request_, message",
    [
        (("a", {"beams": 3}), "arguments of generation must be until, .* got beams"),
        (("<audio> <audio>", {}, {"audio": ["a.wav"]}), "an audio for each <audio>, got 1 for 2"),
        (("<audio>", {}), "got 0 for 1"),
    ],
)
def test_requests_that_cannot_be_meant_are_named(speech_lm, request_, message):
    with pytest.raises(ValueError, match=message):
        HarnessModel(speech_lm).generate_until([request_], skip_errors=True)


def test_folders_are_enough(toy_folders, speech_lm):
    paths = {"audio_tokenizer_path": toy_folders.audio_tokenizer, "audio_decoder_path": toy_folders.audio_decoder}
    model = HarnessModel.from_pretrained(toy_folders.model, **paths, device="cpu", plan="turbo")
    assert model.generate_until([("say one", SHORT)]) == [answer(speech_lm, text_conversation("say one"), "turbo")]
    assert re.fullmatch("cpu", str(model.speech_lm.model.device))

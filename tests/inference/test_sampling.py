"""Values of generation without meaning are refused with one line, wherever they come from."""

import math

import pytest
from toy_conversations import CONVERSATIONS
from transformers import GenerationConfig

from vita_audio.inference.harness import HarnessModel
from vita_audio.inference.sampling import RULES, check_generation

WRONG = {
    "do_sample": ["yes", 1],
    "temperature": [0, -1.0, math.inf, math.nan, "hot", True],
    "repetition_penalty": [0, -0.5, math.inf, math.nan],
    "encoder_repetition_penalty": [0, math.nan],
    "max_time": [0, -1, math.inf],
    "top_p": [0, -0.1, 1.5, math.nan, "0.9"],
    "typical_p": [0, 1.01, math.nan],
    "top_h": [0, 2],
    "min_p": [-0.1, 1.1, math.nan],
    "epsilon_cutoff": [-0.1, 1.0],
    "eta_cutoff": [-0.1, 1.0],
    "top_k": [-1, 2.5, "5", True],
    "no_repeat_ngram_size": [-1, 1.5],
    "min_length": [-1],
    "min_new_tokens": [-1, 0.5],
    "max_length": [0, -3],
    "max_new_tokens": [0, -1, 2.5],
    "num_return_sequences": [0, 2],
}
RIGHT = {
    "do_sample": [True, False],
    "temperature": [0.01, 1, 5.0],
    "repetition_penalty": [0.5, 1.0, 1.2],
    "top_p": [0.01, 1.0, 1],
    "typical_p": [0.5, 1.0],
    "min_p": [0.0, 0.1, 1.0],
    "top_k": [0, 1, 50],
    "epsilon_cutoff": [0.0, 3e-4],
    "min_new_tokens": [0, 3],
    "max_new_tokens": [1, 7],
    "num_return_sequences": [1],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=str)
def test_values_without_meaning_are_refused(speech_lm, name, value):
    message = f"^{name} must be [^\n]+, got {str(value) if not isinstance(value, str) else repr(value)}$"
    for call in (speech_lm.respond, speech_lm.stream):
        with pytest.raises(ValueError, match=message):
            call(CONVERSATIONS[0], **{name: value})
    with pytest.raises(ValueError, match=message):
        speech_lm.respond_batch(CONVERSATIONS[:1], **{name: value})


def test_every_rule_has_wrong_values():
    assert set(WRONG) == {name for names, *_ in RULES for name in names}


def test_values_with_meaning_and_none_are_accepted(speech_lm):
    for name, values in RIGHT.items():
        for value in values:
            check_generation({name: value})
    check_generation(dict.fromkeys(RULES))
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 0.7, "max_new_tokens": 2}
    assert len(speech_lm.respond(CONVERSATIONS[0], **options, decode_audio=False).ids) <= 2


def test_a_generation_config_and_a_harness_are_checked_too(speech_lm):
    config = GenerationConfig(do_sample=True)
    config.top_p = 1.5
    with pytest.raises(ValueError, match="top_p must be a number above 0 and at most 1, got 1.5"):
        speech_lm.respond(CONVERSATIONS[0], generation_config=config)
    model = HarnessModel(speech_lm)
    with pytest.raises(ValueError, match="max_new_tokens must be an integer of at least 1, got 0"):
        model.generate_until([("say one", {"max_gen_toks": 0})])
    with pytest.raises(ValueError, match="top_p must be .*, got 1.5"):
        model.respond("say one", do_sample=True, top_p=1.5)

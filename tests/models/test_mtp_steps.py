"""Decoding step by step: the iterator that `generate(custom_generate=mtp_steps)` returns."""

import pytest
import torch
from toy_models import make_model
from transformers import LogitsProcessorList

from vita_audio.models.mtp_generation import mtp_steps

PLAN = [1, 3, 2, 2]  # more module steps than there are modules
GREEDY = {"do_sample": False, "max_new_tokens": 10, "mtp_inference_mode": PLAN}


@pytest.fixture(scope="module")
def model():
    return make_model(2)


def test_transformers_hands_the_generator_of_a_custom_function_back(model, ids):
    """Undocumented, and single steps depend on it."""

    def count(model, input_ids, logits_processor, stopping_criteria, generation_config, **prepared):
        yield input_ids.shape[1]
        yield sorted(prepared)

    steps = model.generate(ids, max_new_tokens=2, custom_generate=count)
    assert next(steps) == 12
    assert {"position_ids", "attention_mask", "past_key_values"} <= set(next(steps))


@pytest.mark.parametrize("mode", [PLAN, "turbo", "vanilla", None], ids=str)
@pytest.mark.parametrize("num_modules", [0, 2])
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "top_k": 20}], ids=["greedy", "sampled"])
def test_single_steps_are_those_of_generate(ids, mode, num_modules, sampling):
    """Also without modules and plan, where `generate` is transformers' own."""
    model = make_model(num_modules)
    options = GREEDY | {"mtp_inference_mode": mode} | sampling
    torch.manual_seed(5)
    expected = model.generate(ids, **options, return_dict_in_generate=True, output_logits=True)
    torch.manual_seed(5)
    steps = list(model.generate(ids, **options, custom_generate=mtp_steps, output_logits=True))
    assert torch.stack([step.tokens for step in steps], dim=1).tolist() == expected.sequences[:, 12:].tolist()
    torch.testing.assert_close(tuple(step.logits for step in steps), expected.logits)
    assert [step.depth for step in steps] == list(getattr(expected, "steps", [0] * 10))
    assert all(step.is_new.all() for step in steps)


def test_steps_tell_which_rows_have_ended(model, ids):
    alone = [model.generate(ids[row : row + 1], **GREEDY)[0, 12:].tolist() for row in range(2)]
    stop = next(token for token in alone[0][1:6] if token not in alone[1])
    ends = {"eos_token_id": stop, "pad_token_id": 0}
    steps = list(model.generate(ids, **GREEDY, **ends, custom_generate=mtp_steps))
    rows = [[int(step.tokens[row]) for step in steps if step.is_new[row]] for row in range(2)]
    assert rows == [alone[0][: alone[0].index(stop) + 1], alone[1]]
    assert len(steps) == 10 and steps[-1].tokens[0] == 0


def test_no_step_keeps_a_graph_or_changes_the_callers_grad_mode(model, ids):
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            steps = model.generate(ids, **GREEDY, custom_generate=mtp_steps, output_logits=True)
            for step in steps:
                assert torch.is_grad_enabled() == enabled and not step.logits.requires_grad
                assert (torch.ones(1, requires_grad=True) * 2).requires_grad == enabled
            assert torch.is_grad_enabled() == enabled
    steps = model.generate(ids, **GREEDY, custom_generate=mtp_steps)
    next(steps)
    steps.close()
    assert torch.is_grad_enabled()


def test_nothing_runs_between_steps_and_errors_reach_the_caller(model, ids):
    seen = []

    def fail_at_15(input_ids, scores):
        seen.append(input_ids.shape[1])
        if input_ids.shape[1] == 15:
            raise RuntimeError("stop here")
        return scores

    options = GREEDY | {"custom_generate": mtp_steps, "logits_processor": LogitsProcessorList([fail_at_15])}
    steps = model.generate(ids, **options)
    assert seen == []
    next(steps), next(steps)
    assert seen == [12, 13]
    with pytest.raises(RuntimeError, match="stop here"):
        list(steps)
    assert seen == [12, 13, 14, 15] and list(steps) == []
    abandoned = model.generate(ids, **options | {"logits_processor": None})
    next(abandoned)
    abandoned.close()
    assert list(abandoned) == []
    with pytest.raises(ValueError, match="got beam_search"):  # at once, not at the first step
        model.generate(ids, **options, num_beams=2)


def test_arguments_that_decoding_does_not_know_are_errors(model, ids):
    with pytest.raises(ValueError, match="typo"):
        model.generate(ids, **GREEDY, typo=1)
    with pytest.raises(TypeError, match="labels"):
        model.generate(ids, **GREEDY, labels=ids)


@pytest.mark.parametrize("depth", [0, 3, -1])
def test_a_depth_without_a_module_is_an_error(model, ids, depth):
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match=rf"depth must be in 1\.\.2, got {depth}; 0 has no module"):
        model.mtp_step(depth, embeds, embeds, torch.arange(12)[None])

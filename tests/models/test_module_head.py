"""Module steps that score some tokens only: the same logits for those, and nothing else."""

import pytest
import torch
from toy_models import make_agreeing_model

GREEDY = {"do_sample": False, "max_new_tokens": 24, "mtp_inference_mode": "boost"}
FULL = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module")
def model():
    return make_agreeing_model(4, disagreement=0.02)


@pytest.mark.parametrize("acceptance", [0, 0.97, 1])
def test_enough_tokens_make_the_same_answer(model, ids, acceptance):
    full = model.generate(ids, **GREEDY, **FULL, acceptance=acceptance)
    output = model.generate(ids, **GREEDY, **FULL, acceptance=acceptance, module_tokens=range(101))
    assert output.sequences.tolist() == full.sequences.tolist() and output.counts == full.counts
    if acceptance in (0, 1):  # in between, a draft that was never in question may be accepted
        made = sorted(set(full.sequences.flatten().tolist()))
        output = model.generate(ids, **GREEDY, acceptance=acceptance, module_tokens=made)
        assert output.tolist() == full.sequences.tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_modules_score_these_tokens_and_the_backbone_all(model, ids, use_cache):
    tokens = [7, 3, 50, 51, 52, 3]
    output = model.generate(ids, **GREEDY, **FULL, module_tokens=tokens, use_cache=use_cache)
    picked = model.generate(ids, **GREEDY, module_tokens=tokens, use_cache=use_cache)  # without logits of the rest
    assert picked.tolist() == output.sequences.tolist()
    prompt = output.sequences[:, :13]  # the first step of a module follows the first token of the backbone
    full = model.generate(prompt[:, :12], **GREEDY | {"max_new_tokens": 2}, **FULL)
    for depth, logits in zip(output.steps, output.logits, strict=True):
        scored = logits.isfinite().all(dim=0).nonzero().flatten().tolist()
        assert scored == (sorted(set(tokens)) if depth else list(range(101)))
    torch.testing.assert_close(output.logits[1][:, sorted(set(tokens))], full.logits[1][:, sorted(set(tokens))])


def test_acceptance_one_does_not_depend_on_the_tokens(model, ids):
    expected = model.generate(ids, **GREEDY | {"mtp_inference_mode": "vanilla"}).tolist()
    for tokens in (range(50), [100], range(30, 101)):
        assert model.generate(ids, **GREEDY, acceptance=1, module_tokens=tokens).tolist() == expected


def test_other_tokens_are_scored_where_the_context_is_another(model, ids):
    """A row whose latest token is no context makes the modules score everything, for all rows of the call."""
    tokens, context = list(range(60)), list(range(30, 90))
    options = GREEDY | FULL | {"module_tokens": tokens}
    output = model.generate(ids, **options, module_context=context)
    kinds = set()
    for place, (depth, logits) in enumerate(zip(output.steps, output.logits, strict=True)):
        latest = output.sequences[:, 11 + place].tolist()
        is_narrow = depth > 0 and all(token in context for token in latest)
        assert logits.isfinite().all(dim=0).nonzero().flatten().tolist() == (tokens if is_narrow else list(range(101)))
        kinds.add((depth > 0, is_narrow))
    assert len(kinds) == 3
    assert model.generate(ids, **options, module_context=range(101)).steps == output.steps


@pytest.mark.parametrize("tokens", [[], [101], [-1, 4]])
def test_tokens_outside_the_vocabulary_are_an_error(model, ids, tokens):
    with pytest.raises(ValueError, match="module_tokens must be ids below 101, got"):
        model.generate(ids, **GREEDY, module_tokens=tokens)

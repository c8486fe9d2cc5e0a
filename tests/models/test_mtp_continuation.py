"""Decoding with modules that goes on from the cache of an earlier call."""

import copy

import pytest
import torch
from toy_models import make_model
from transformers import DynamicCache

PLAN = [1, 3, 2, 2]  # more module steps than there are modules
GREEDY = {"do_sample": False, "max_new_tokens": 10, "mtp_inference_mode": PLAN}
PLANS = [([1, 3, 2, 2], [1, 3, 2, 2]), ([5, 1], [1, 2]), ("vanilla", "turbo"), ("turbo", "vanilla")]


@pytest.fixture(scope="module")
def model():
    return make_model(2)


def continuation(model, ids, first, second, **more):
    """Generate, add three tokens, generate on; return what to compare."""
    earlier = model.generate(ids, **GREEDY | first, return_dict_in_generate=True, **more)
    prompt = torch.cat([earlier.sequences, ids[:, :3]], dim=1)
    return earlier.past_key_values, prompt, GREEDY | second | {"return_dict_in_generate": True, "output_logits": True}


@pytest.mark.parametrize("first, second", PLANS)
@pytest.mark.parametrize("num_tokens", [1, 3, 7, 10])
def test_continuing_from_a_cache_equals_starting_anew(model, ids, first, second, num_tokens):
    cache, prompt, arguments = continuation(
        model, ids, {"mtp_inference_mode": first, "max_new_tokens": num_tokens}, {"mtp_inference_mode": second}
    )
    anew = model.generate(prompt, **arguments)
    continued = model.generate(prompt, past_key_values=cache, **arguments)
    assert continued.sequences.tolist() == anew.sequences.tolist()
    torch.testing.assert_close(continued.logits, anew.logits, atol=1e-4, rtol=1e-4)
    assert continued.past_key_values is cache


@pytest.mark.parametrize("with_ids", [True, False])
def test_continuing_with_embeddings_of_what_is_new(model, ids, with_ids):
    cache, prompt, arguments = continuation(model, ids, {}, {})
    embeds = model.get_input_embeddings()(prompt) * 0.5
    cached = cache.get_seq_length()
    new = {"inputs_embeds": embeds[:, cached:], "attention_mask": torch.ones_like(prompt)}
    anew = copy.deepcopy(cache)
    expected = model.generate(prompt, inputs_embeds=embeds, past_key_values=anew, **arguments)
    ids_given = {"input_ids": prompt[:, cached:]} if with_ids else {}
    continued = model.generate(**ids_given, **new, past_key_values=cache, **arguments)
    torch.testing.assert_close(continued.logits[0], expected.logits[0], atol=1e-4, rtol=1e-4)
    if with_ids:
        assert continued.sequences.tolist() == expected.sequences[:, cached:].tolist()


def test_continuing_reads_only_what_is_new(model, ids):
    cache, prompt, arguments = continuation(model, ids, {"max_new_tokens": 7}, {})
    lengths = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
        for layer in (model.model.layers[0], model.model.layers[2])
    ]
    num_cached = cache.get_seq_length()
    model.generate(prompt, past_key_values=cache, **arguments | {"max_new_tokens": 2})
    for handle in handles:
        handle.remove()
    assert lengths[0] == prompt.shape[1] - num_cached < prompt.shape[1]
    assert lengths[1] < prompt.shape[1]


@pytest.mark.parametrize("second", [PLAN, "vanilla"])
def test_continuing_with_the_new_ids_alone(model, ids, second):
    cache, prompt, arguments = continuation(model, ids, {"max_new_tokens": 7}, {"mtp_inference_mode": second})
    anew = model.generate(prompt, **arguments)
    new_ids = prompt[:, cache.get_seq_length() :]
    mask = torch.ones_like(prompt)
    continued = model.generate(new_ids, attention_mask=mask, past_key_values=cache, **arguments)
    num_new = new_ids.shape[1]
    assert continued.sequences[:, num_new:].tolist() == anew.sequences[:, prompt.shape[1] :].tolist()
    torch.testing.assert_close(continued.logits, anew.logits, atol=1e-4, rtol=1e-4)


def test_continuing_a_left_padded_batch_twice(model, ids):
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    cache, tokens = None, ids
    for _ in range(3):
        anew = model.generate(tokens, attention_mask=mask, **GREEDY, return_dict_in_generate=True)
        output = model.generate(
            tokens, attention_mask=mask, past_key_values=cache, **GREEDY, return_dict_in_generate=True
        )
        assert output.sequences.tolist() == anew.sequences.tolist()
        cache = output.past_key_values
        tokens = torch.cat([output.sequences, ids[:, :2]], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens[:, mask.shape[1] :])], dim=1)


@pytest.mark.parametrize("given_as", ["ids", "embeddings"])
@pytest.mark.parametrize("num_tokens, num_kept", [(7, 5), (9, 7), (9, 8), (12, 10)])
def test_continuing_with_other_tokens_equals_starting_anew(model, ids, num_tokens, num_kept, given_as):
    """Modules have read tokens that the backbone has not cached; the caller may take those back, and cached ones."""
    arguments = GREEDY | {"mtp_inference_mode": [1, 2], "return_dict_in_generate": True, "output_logits": True}
    earlier = model.generate(ids, **arguments | {"max_new_tokens": num_tokens})
    prompt = torch.cat([earlier.sequences[:, : 12 + num_kept], ids[:, :5]], dim=1)
    cache = earlier.past_key_values
    given = {"input_ids": prompt} if given_as == "ids" else {"inputs_embeds": model.get_input_embeddings()(prompt)}
    continued = model.generate(**given, past_key_values=cache, **arguments)
    torch.testing.assert_close(continued.logits, model.generate(prompt, **arguments).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["forward", "cropped", "extended", "own"])
def test_a_cache_without_module_states_is_filled_again(model, ids, how):
    if how == "forward":
        cache = model(input_ids=ids, use_cache=True).past_key_values
    elif how == "own":
        cache = DynamicCache()
    else:
        cache = model.generate(ids[:, :-2], **GREEDY | {"max_new_tokens": 3}, return_dict_in_generate=True)
        cache = cache.past_key_values
        if how == "cropped":
            cache.crop(-2)
        else:
            model(input_ids=ids[:, -3:], past_key_values=cache)
    prompt = torch.cat([ids, ids], dim=1)
    continued = model.generate(prompt, past_key_values=cache, **GREEDY)
    assert continued.tolist() == model.generate(prompt, **GREEDY).tolist()


def test_a_cache_that_cannot_be_continued_is_an_error(model, ids):
    cache = model(input_ids=ids, use_cache=True).past_key_values
    mask = torch.ones(2, 15, dtype=torch.long)
    with pytest.raises(ValueError, match="not made by generate with 2 MTP modules"):
        model.generate(ids[:, :3], attention_mask=mask, past_key_values=cache, **GREEDY)
    earlier = model.generate(ids, **GREEDY | {"max_new_tokens": 3}, return_dict_in_generate=True)
    other_ids = torch.cat([earlier.sequences[:, 12:14] - 1, ids[:, :3]], dim=1)  # modules have read what was there
    with pytest.raises(ValueError, match="with 2 MTP modules and these tokens; give all ids"):
        more = {"attention_mask": torch.ones(2, 17), "past_key_values": earlier.past_key_values}
        model.generate(other_ids, **more, **GREEDY)
    with pytest.raises(ValueError, match="with 12 tokens in the cache"):
        model.generate(ids, past_key_values=cache, **GREEDY)
    with pytest.raises(ValueError, match="with 12 tokens in the cache"):
        model.generate(ids[:, :3], attention_mask=mask[:, :14], past_key_values=cache, **GREEDY)

"""Continuing from the state of an earlier call: the answers of reading everything again, without reading it again."""

import weakref

import pytest
import torch
from toy_models import check_consistent, make_model, make_plus_model, random_audios
from transformers import DynamicCache, LogitsProcessorList

from vita_audio.models.decode_state import DecodeState
from vita_audio.models.mtp_generation import mtp_steps

PLAN = [1, 3, 2, 2]  # more module steps than there are modules
GREEDY = {"do_sample": False, "max_new_tokens": 10, "mtp_inference_mode": PLAN}
FULL = {"return_dict_in_generate": True, "output_logits": True}
PLANS = [
    [PLAN] * 4,
    ["vanilla"] * 4,
    ["turbo"] * 4,
    ["turbo", "vanilla", [5, 1], [1, 2]],
    ["vanilla", [1, 2], "turbo", PLAN],
]


@pytest.fixture(scope="module")
def model():
    return make_model(2)


def count_reads(model, call):
    """Return what `call` returns, and how many positions the first backbone layer read in each of its steps."""
    lengths = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    try:
        return call(), lengths
    finally:
        handle.remove()


def check_equal(continued, anew):
    assert continued.sequences.tolist() == anew.sequences.tolist()
    torch.testing.assert_close(continued.logits, anew.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("plans", PLANS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 7, 10])
def test_every_turn_equals_reading_everything_again(model, ids, plans, num_tokens):
    state, prompt = DecodeState(), ids
    for plan in plans:
        options = GREEDY | FULL | {"mtp_inference_mode": plan, "max_new_tokens": num_tokens}
        anew = model.generate(prompt, **options)
        num_unread = prompt.shape[1] - (state.num_read or [0])[0]
        continued, lengths = count_reads(model, lambda: model.generate(prompt, decode_state=state, **options))  # noqa: B023
        check_equal(continued, anew)
        check_consistent(state)
        assert continued.state is state and lengths[0] == num_unread
        prompt = torch.cat([continued.sequences, ids[:, :3]], dim=1)
    assert lengths[0] <= 3 + num_tokens < len(prompt[0])  # the question, and the answer's end that was not read yet


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padded_batches_continue(ids, attention):
    model = make_model(2, attention=attention)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    state, prompt = DecodeState(), ids
    for _ in range(3):
        anew = model.generate(prompt, attention_mask=mask, **GREEDY, **FULL)
        output = model.generate(prompt, attention_mask=mask, decode_state=state, **GREEDY, **FULL)
        check_equal(output, anew)
        prompt = torch.cat([output.sequences, ids[:, :2]], dim=1)
        mask = torch.cat([mask, torch.ones_like(prompt[:, mask.shape[1] :])], dim=1)
    mask[0, 5] = 0  # the same tokens, of which another one is padding: nothing can be kept behind it
    anew = model.generate(prompt, attention_mask=mask, **GREEDY, **FULL)
    check_equal(model.generate(prompt, attention_mask=mask, decode_state=state, **GREEDY, **FULL), anew)


@pytest.mark.parametrize("plan", [PLAN, "turbo", "vanilla", [1, 2]], ids=str)
@pytest.mark.parametrize("num_tokens", [7, 9, 12])
def test_another_conversation_keeps_the_common_prefix(model, ids, plan, num_tokens):
    """Wherever it parts from the old one; modules read ahead of the backbone, so it reads a few positions again."""
    options = GREEDY | FULL | {"mtp_inference_mode": plan}
    for num_kept in range(1, 12 + num_tokens):
        state = DecodeState()
        model.generate(ids, decode_state=state, **options | {"max_new_tokens": num_tokens})
        num_read = min(num_kept, state.num_read[0])
        prompt = torch.cat([state.tokens[:, :num_kept], (state.tokens[:, num_kept : num_kept + 1] + 1) % 100], dim=1)
        prompt = torch.cat([prompt, ids[:, :5]], dim=1)
        anew = model.generate(prompt, **options)
        continued, lengths = count_reads(model, lambda: model.generate(prompt, decode_state=state, **options))  # noqa: B023
        check_equal(continued, anew)
        check_consistent(state)
        assert 0 <= lengths[0] - (prompt.shape[1] - num_read) <= model.config.num_nextn_predict_layers


def test_cropping_keeps_all_depths_consistent(ids):
    model = make_model(4)
    for num_tokens in (1, 4, 6):
        for num_kept in range(18):
            state = model.generate(
                ids, **GREEDY | FULL | {"mtp_inference_mode": "turbo", "max_new_tokens": num_tokens}
            ).state
            state.crop(num_kept)
            check_consistent(state)
            assert state.length == state.tokens.shape[1] == min(num_kept, 12 + num_tokens)
            assert all(read <= max(depth, num_kept) for depth, read in enumerate(state.num_read))


def test_the_same_and_a_shorter_prompt(model, ids):
    anew = model.generate(ids, **GREEDY, **FULL)
    state = model.generate(ids, **GREEDY, **FULL).state
    check_equal(model.generate(ids, decode_state=state, **GREEDY, **FULL), anew)
    shorter = model.generate(ids[:, :7], **GREEDY, **FULL)
    check_equal(model.generate(ids[:, :7], decode_state=state, **GREEDY, **FULL), shorter)
    check_equal(
        model.generate(ids[:, :1], decode_state=state, **GREEDY, **FULL), model.generate(ids[:, :1], **GREEDY, **FULL)
    )


@pytest.mark.parametrize("plan", [PLAN, "turbo", "vanilla"], ids=str)
def test_a_closed_iterator_leaves_a_state_to_continue_from(model, ids, plan):
    options = GREEDY | {"mtp_inference_mode": plan}
    for num_steps in range(1, 9):
        state = DecodeState()
        steps = model.generate(ids, custom_generate=mtp_steps, decode_state=state, **options)
        tokens = torch.stack([next(steps).tokens for _ in range(num_steps)], dim=1)
        steps.close()
        assert state.tokens.tolist() == torch.cat([ids, tokens], dim=1).tolist()
        check_consistent(state)
        prompt = torch.cat([state.tokens, ids[:, :4]], dim=1)
        anew = model.generate(prompt, **options, **FULL)
        check_equal(model.generate(prompt, decode_state=state, **options, **FULL), anew)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_step_that_failed_half_way_leaves_a_state_to_continue_from(model, ids, layer):
    """Some layers have cached what others have not."""
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    state = DecodeState()
    handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.generate(ids, decode_state=state, **GREEDY)
    handle.remove()
    assert state.length > 12
    prompt = torch.cat([state.tokens, ids[:, :4]], dim=1)
    continued = model.generate(prompt, decode_state=state, **GREEDY, **FULL)
    check_equal(continued, model.generate(prompt, **GREEDY, **FULL))
    check_consistent(state)


def test_a_failed_processor_leaves_a_state_to_continue_from(model, ids):
    def fail(input_ids, scores):
        if input_ids.shape[1] == 15:
            raise RuntimeError("stop here")
        return scores

    state = DecodeState()
    with pytest.raises(RuntimeError, match="stop here"):
        model.generate(ids, decode_state=state, logits_processor=LogitsProcessorList([fail]), **GREEDY)
    check_equal(model.generate(ids, decode_state=state, **GREEDY, **FULL), model.generate(ids, **GREEDY, **FULL))


@pytest.mark.parametrize("more", [{}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("fields", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}])
def test_a_sliding_window_and_a_turn_without_a_cache_continue(ids, fields, more):
    """Slots forget nothing; what a call without a cache has computed is not used again."""
    model = make_model(2, **fields)
    state = model.generate(ids, **GREEDY, **FULL, **more).state
    assert (state.cache is None) == bool(more)
    prompt = torch.cat([state.tokens, ids[:, :3]], dim=1)
    check_equal(model.generate(prompt, decode_state=state, **GREEDY, **FULL), model.generate(prompt, **GREEDY, **FULL))


def test_the_state_of_another_model_or_batch_size_is_refused(model, ids):
    state = model.generate(ids, **GREEDY, **FULL).state
    before = state.tokens.tolist()
    with pytest.raises(ValueError, match="decode_state was filled by another model; give an empty DecodeState"):
        make_model(2).generate(ids, decode_state=state, **GREEDY)
    for acceptance in (0, 1):
        with pytest.raises(ValueError, match="decode_state holds 2 rows, got 1 prompts; give an empty DecodeState"):
            model.generate(ids[:1], decode_state=state, **GREEDY, acceptance=acceptance)
    assert state.tokens.tolist() == before
    check_equal(model.generate(ids, decode_state=state, **GREEDY, **FULL), model.generate(ids, **GREEDY, **FULL))


def test_a_state_belongs_to_one_call_at_a_time(model, ids):
    state, expected = DecodeState(), model.generate(ids, **GREEDY, **FULL)
    options = GREEDY | {"custom_generate": mtp_steps, "decode_state": state}
    for end in (lambda steps: steps.close(), list):
        steps = model.generate(ids, **options)
        for _ in range(2):
            with pytest.raises(ValueError, match="decode_state is in use by a call that has not ended"):
                model.generate(ids, decode_state=state, **GREEDY)
            next(steps)
        rest = end(steps)
        assert rest is None or [step.tokens.tolist() for step in rest] == expected.sequences[:, 14:].T.tolist()
        check_equal(model.generate(ids, decode_state=state, **GREEDY, **FULL), expected)
    model.generate(ids, **options)  # a call that is dropped has ended, too
    check_equal(model.generate(ids, decode_state=state, **GREEDY, **FULL), expected)


def test_prompts_of_embeddings_only_read_everything_again(model, ids):
    embeds = model.get_input_embeddings()(ids)
    state = model.generate(inputs_embeds=embeds, **GREEDY, **FULL).state
    check_equal(model.generate(ids, decode_state=state, **GREEDY, **FULL), model.generate(ids, **GREEDY, **FULL))


def test_a_filled_cache_without_a_state_is_refused(model, ids):
    cache = model(input_ids=ids, use_cache=True).past_key_values
    prompt = torch.cat([ids, ids], dim=1)
    with pytest.raises(ValueError, match="must be empty, got 12 tokens; to continue, give the decode_state"):
        model.generate(prompt, past_key_values=cache, **GREEDY)
    output = model.generate(prompt, past_key_values=DynamicCache(), **GREEDY, **FULL)
    assert output.past_key_values is output.state.cache
    check_equal(output, model.generate(prompt, **GREEDY, **FULL))


def test_a_state_holds_no_model(model, ids):
    """Nothing in it leads back to a module, so keeping it keeps no weights."""
    state = model.generate(ids, **GREEDY, **FULL).state
    seen, queue = set(), [state]
    while queue:
        value = queue.pop()
        if id(value) in seen or isinstance(value, torch.Tensor | type | weakref.ref):
            continue
        seen.add(id(value))
        assert not isinstance(value, torch.nn.Module | torch.nn.Parameter)
        queue += value if isinstance(value, list | tuple) else list(getattr(value, "__dict__", {}).values())
    assert len(seen) > 5


def places(start, length):
    return torch.stack([torch.zeros(1, length, dtype=torch.int64), torch.arange(start, start + length)[None]])


@pytest.mark.parametrize("plan", [[1, 2], "vanilla"], ids=str)
def test_audio_of_earlier_turns_may_be_left_out(ids, plan):
    model = make_plus_model(2)
    first, second = random_audios(2, 1)
    options = GREEDY | FULL | {"max_new_tokens": 6, "mtp_inference_mode": plan}
    state = DecodeState()
    model.generate(ids[:1], audios=[first], audio_indices=[places(1, 6)], decode_state=state, **options)
    prompt = torch.cat([state.tokens, ids[1:]], dim=1)
    new = {"audios": [second], "audio_indices": [places(20, 5)]}
    both = {"audios": [first, second], "audio_indices": [places(1, 6), places(20, 5)]}
    anew = model.generate(prompt, **both, **options)
    check_equal(model.generate(prompt, **new, decode_state=state, **options), anew)
    prompt = torch.cat([anew.sequences, ids[:1]], dim=1)
    anew = model.generate(prompt, **both, **options)
    check_equal(model.generate(prompt, decode_state=state, **options), anew)

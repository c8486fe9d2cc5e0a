"""Greedy decoding in which the backbone verifies the modules' tokens."""

import gc
import threading

import pytest
import torch
from toy_models import (
    ASSETS,
    LENGTHS,
    check_consistent,
    make_agreeing_model,
    make_model,
    make_plus_model,
    random_audios,
)
from transformers import AutoTokenizer, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from vita_audio.interleave import BACKBONE, InterleavePlan
from vita_audio.models.decode_state import DecodeState
from vita_audio.models.mtp_generation import mtp_steps
from vita_audio.models.verification import judge_greedy

PLANS = ["boost", "turbo", [1, 3, 2, 2], [2, 1]]
GREEDY = {"do_sample": False, "max_new_tokens": 24, "mtp_inference_mode": "boost"}
FULL = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module")
def model():
    """Accepts some tokens of each depth."""
    return make_agreeing_model(4, disagreement=0.02)


def single(prompts, row):
    return {"input_ids": prompts["input_ids"][row : row + 1, 12 - LENGTHS[row] :]}


def new_tokens(model, inputs, **options):
    sequences = model.generate(**inputs, **GREEDY | options)
    return sequences[:, inputs["input_ids"].shape[1] :].tolist()


def check_equal(continued, anew):
    assert continued.sequences.tolist() == anew.sequences.tolist()
    torch.testing.assert_close(continued.logits, anew.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("disagreement", [0.005, 0.02, None])
def test_acceptance_one_writes_what_the_backbone_writes(prompts, attention, plan, disagreement):
    """Batches, single rows and streams; None is a model whose modules know nothing."""
    make = make_model if disagreement is None else make_agreeing_model
    options = {} if disagreement is None else {"disagreement": disagreement}
    model = make(4, attention=attention, **options)
    alone = {"mtp_inference_mode": plan, "acceptance": 1}
    expected = new_tokens(model, prompts, mtp_inference_mode="vanilla")
    assert new_tokens(model, prompts, **alone) == expected
    for row in (1, 4):
        assert new_tokens(model, single(prompts, row), **alone) == [expected[row]]
    steps = model.generate(**single(prompts, 4), **GREEDY | alone, custom_generate=mtp_steps)
    assert [int(step.tokens) for step in steps] == expected[4]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [make_agreeing_model, make_model, make_plus_model])
def test_acceptance_one_on_many_prompts(make, seed):
    model = make(4, seed=seed)
    ids = torch.randint(3, 100, (256, 10), generator=torch.Generator().manual_seed(seed))
    expected = new_tokens(model, {"input_ids": ids}, mtp_inference_mode="vanilla")
    assert new_tokens(model, {"input_ids": ids}, acceptance=1) == expected


@pytest.mark.parametrize("acceptance", [0.9, 0.97, 1])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_batches_equal_single_rows(model, prompts, plan, acceptance):
    options = GREEDY | FULL | {"mtp_inference_mode": plan, "acceptance": acceptance}
    batch = model.generate(**prompts, **options)
    assert batch.steps is None and len({count.num_backbone_passes for count in batch.counts}) > 1
    for row, length in enumerate(LENGTHS):
        alone = model.generate(**single(prompts, row), **options)
        assert batch.sequences[row, 12:].tolist() == alone.sequences[0, length:].tolist()
        assert batch.counts[row] == alone.counts[0]
        torch.testing.assert_close(
            torch.stack(batch.logits)[:, row], torch.stack(alone.logits)[:, 0], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_accepting_everything_equals_committed_decoding(prompts, plan):
    """Up to the last token, which the backbone makes here because it has to read the drafts before it anyway."""
    model = make_model(4)
    plan = {"mtp_inference_mode": plan}
    committed, verified = new_tokens(model, prompts, **plan), new_tokens(model, prompts, **plan, acceptance=1e-38)
    assert [row[:-1] for row in verified] == [row[:-1] for row in committed]
    for nothing in (0, 0.0, None):
        assert new_tokens(model, prompts, **plan, acceptance=nothing) == committed


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_token_has_the_place_that_the_plan_gives_it(model, prompts, plan):
    options = GREEDY | {"mtp_inference_mode": plan, "acceptance": 0.97, "custom_generate": mtp_steps}
    steps = list(model.generate(**prompts, **options))
    num_replaced = 0
    for row in range(8):
        since_backbone = 1
        for place, step in enumerate(steps):
            planned = InterleavePlan.parse(plan).depth(place, since_backbone, 4)
            if place < len(steps) - 1:  # the last token is the backbone's
                assert step.drafts[row] == planned
            assert step.depths[row] in (BACKBONE, step.drafts[row])
            num_replaced += step.drafts[row] != step.depths[row]
            since_backbone = 1 if step.depths[row] == BACKBONE else step.depths[row] + 1
    assert num_replaced > 10


def test_the_rule_of_acceptance(model, prompts):
    """Each accepted token is likely enough in the backbone's eyes, each replaced one was not, and both occur."""
    options = GREEDY | FULL | {"output_scores": True, "acceptance": 0.3}
    output = model.generate(**prompts, **options)
    steps = list(model.generate(**prompts, **options, custom_generate=mtp_steps))
    shares = {True: [], False: []}
    for step, scores in zip(steps, output.scores, strict=True):
        probs = scores.softmax(dim=-1)
        share = probs.gather(1, step.tokens[:, None])[:, 0] / probs.max(dim=-1).values
        for row, value in enumerate(share.tolist()):
            shares[step.depths[row] == BACKBONE].append(value)
    assert set(shares[True]) == {1} and 0.3 <= min(shares[False]) < 0.9


def test_acceptance_of_single_tokens():
    """Three scored places of a row with two drafts; a draft counts only if all before it are accepted."""
    scores = torch.tensor([0.6, 0.3, 0.1, 0.0]).log()

    def judged(acceptance, *drafts, scores=scores, num_drafts=2):
        scores = scores.expand(1, len(drafts) + 1, -1)
        accepted, tokens = judge_greedy(scores, torch.tensor([drafts]), torch.tensor([num_drafts]), acceptance)
        return accepted.item() if tokens.item() == 0 else None

    assert [judged(1, 0, draft) for draft in range(4)] == [judged(0.6, 0, draft) for draft in range(4)] == [2, 1, 1, 1]
    assert [judged(1, draft, 0) for draft in range(4)] == [2, 0, 0, 0]
    assert [judged(0.45, 1, draft) for draft in range(4)] == [2, 2, 1, 1]
    assert [judged(0.1, 2, draft) for draft in range(4)] == [2, 2, 2, 1]
    assert judged(0.1, 0, 0, num_drafts=1) == 1 and judged(0.1, 0, 0, num_drafts=0) == 0
    tied = torch.tensor([2.0, 2.0, 1.0])
    assert judged(1, 0, 1, scores=tied) == 1 and judged(0.99, 1, 1, scores=tied) == 2


def test_one_pass_per_cycle_and_nothing_read_twice(model, prompts):
    """The backbone reads each position once, apart from those whose token it has replaced."""
    lengths = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    output = model.generate(**single(prompts, 0), **GREEDY, acceptance=1, return_dict_in_generate=True)
    handle.remove()
    (counts,) = output.counts
    assert len(lengths) == counts.num_backbone_passes < counts.num_tokens == 24
    num_drafted = sum(InterleavePlan.parse("boost").depth(place, 1, 4) > 0 for place in range(24)) * 4
    assert 12 + 23 <= sum(lengths) <= 12 + 23 + num_drafted
    assert sum(counts.num_accepted) + counts.num_backbone_passes - 24 in (0, 1)
    assert counts.tokens_per_pass == 24 / counts.num_backbone_passes
    assert counts.acceptance_by_depth[0] == counts.num_accepted[1] / counts.num_verified[1]
    assert output.steps.count(0) in (counts.num_backbone_passes, counts.num_backbone_passes - 1)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(40))},
        {"min_new_tokens": 12, "eos_token_id": list(range(50, 101)), "pad_token_id": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_processors_act_on_accepted_tokens(model, prompts, options):
    expected = new_tokens(model, prompts, mtp_inference_mode="vanilla", **options)
    assert new_tokens(model, prompts, acceptance=1, **options) == expected
    assert expected != new_tokens(model, prompts, mtp_inference_mode="vanilla")


def test_every_end_is_the_backbones_end(model, prompts):
    """A module that drafts an end does not end the answer, and an accepted end drops the drafts after it."""
    ends = set()
    for stop in range(101):
        options = {"eos_token_id": stop, "pad_token_id": 0}
        expected = new_tokens(model, prompts, mtp_inference_mode="vanilla", **options)
        assert new_tokens(model, prompts, acceptance=1, **options) == expected
        ends |= {row.index(stop) for row in expected if stop in row}
    assert len(ends) > 15


def test_criteria_and_streamers_see_final_tokens_only(model, prompts):
    class Collector(BaseStreamer):
        def __init__(self):
            self.values, self.has_ended = [], False

        def put(self, value):
            self.values.append(value.flatten().tolist())

        def end(self):
            self.has_ended = True

    seen, collector = [], Collector()

    def spy(input_ids, scores, **kwargs):
        seen.append(input_ids[0].tolist())
        return torch.zeros(len(input_ids), dtype=torch.bool)

    more = {"stopping_criteria": StoppingCriteriaList([spy]), "streamer": collector}
    (tokens,) = model.generate(**single(prompts, 0), **GREEDY, acceptance=1, **more).tolist()
    assert seen == [tokens[: 13 + place] for place in range(24)]
    assert collector.has_ended and collector.values == [tokens[:12], *([token] for token in tokens[12:])]


def test_stop_strings(prompts):
    tokenizer = AutoTokenizer.from_pretrained(ASSETS.parent / "tiny_tokenizer")
    model = make_agreeing_model(4, disagreement=0.01, vocab_size=len(tokenizer))
    expected = new_tokens(model, single(prompts, 0), mtp_inference_mode="vanilla")[0]
    texts = [tokenizer.decode(token) for token in expected]
    for end in range(1, 24):
        text = texts[end]
        if text and text.isascii() and text not in "".join(texts[:end]):
            stops = {"stop_strings": [text], "tokenizer": tokenizer}
            assert new_tokens(model, single(prompts, 0), acceptance=1, **stops) == [expected[: end + 1]]


@pytest.mark.parametrize("batch", [slice(0, 1), slice(0, 8)], ids=["one row", "batch"])
@pytest.mark.parametrize("plans", [["boost"] * 4, ["turbo", "vanilla", [5, 1], [1, 2]]], ids=str)
@pytest.mark.parametrize("values", [[1] * 4, [0, 1, 0.3, 0], [0.5, 0, 1, 0.02]], ids=str)
def test_turns_continue_from_verified_and_committed_turns(model, prompts, batch, plans, values):
    state = DecodeState()
    prompt, mask = prompts["input_ids"][batch], prompts["attention_mask"][batch]
    for plan, acceptance in zip(plans, values, strict=True):
        options = GREEDY | FULL | {"mtp_inference_mode": plan, "acceptance": acceptance, "max_new_tokens": 9}
        anew = model.generate(prompt, attention_mask=mask, **options)
        continued = model.generate(prompt, attention_mask=mask, decode_state=state, **options)
        check_equal(continued, anew)
        check_consistent(state)
        assert state.num_read[0] >= prompt.shape[1]
        prompt = torch.cat([continued.sequences, prompts["input_ids"][batch, -3:]], dim=1)
        mask = torch.cat([mask, torch.ones_like(prompt[:, mask.shape[1] :])], dim=1)


@pytest.mark.parametrize("first_chunk", ["verified", "committed"])
def test_a_closed_iterator_leaves_a_state_to_continue_from(model, prompts, first_chunk):
    options = GREEDY | {"acceptance": 0.5}
    for num_steps in range(1, 14):
        state, inputs = DecodeState(), single(prompts, 0)
        arguments = options | {"custom_generate": mtp_steps, "decode_state": state, "first_chunk": first_chunk}
        steps = model.generate(**inputs, **arguments)
        tokens = torch.stack([next(steps).tokens for _ in range(num_steps)], dim=1)
        steps.close()
        assert state.tokens.tolist() == torch.cat([inputs["input_ids"], tokens], dim=1).tolist()
        check_consistent(state)
        prompt = torch.cat([state.tokens, inputs["input_ids"][:, :4]], dim=1)
        anew = model.generate(prompt, **options, **FULL)
        check_equal(model.generate(prompt, decode_state=state, **options, **FULL), anew)


@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_failed_verification_leaves_a_state_to_continue_from(model, prompts, layer, call):
    """Some layers have cached what others have not."""
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("out of memory")

    state, inputs = DecodeState(), single(prompts, 0)
    handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.generate(**inputs, decode_state=state, **GREEDY, acceptance=1)
    handle.remove()
    check_consistent(state)
    prompt = torch.cat([state.tokens, inputs["input_ids"][:, :4]], dim=1)
    for acceptance in (1, 0):
        options = GREEDY | FULL | {"acceptance": acceptance}
        check_equal(model.generate(prompt, decode_state=state, **options), model.generate(prompt, **options))


def test_calls_that_are_cancelled_leave_nothing_behind(model, prompts):
    """Neither a tensor nor a thread, whether a call is closed, dropped or fails, before or inside a verification."""

    def fail(input_ids, scores):
        if input_ids.shape[1] == 18:
            raise RuntimeError("stop here")
        return scores

    def cycle(number):
        processors = LogitsProcessorList([fail] if number % 4 == 3 else [])
        more = {"acceptance": 0.5, "custom_generate": mtp_steps, "logits_processor": processors}
        steps = model.generate(**prompts, **GREEDY | more)
        try:
            for _ in range(number % 7):
                next(steps)
        except RuntimeError:
            return
        if number % 2:
            steps.close()

    def count():
        gc.collect()
        return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects()), threading.active_count()

    cycle(5), cycle(6)
    before = count()
    for number in range(200):
        cycle(number)
    assert count() == before


def test_the_first_chunk_may_be_handed_on_without_verification(model, prompts):
    options = GREEDY | {"acceptance": 1, "custom_generate": mtp_steps, "mtp_inference_mode": [2, 3]}
    passes = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(1))
    for first_chunk, num_passes in (("verified", [1, 2]), ("committed", [1, 2, 2, 2, 2, 3])):
        passes.clear()
        steps = model.generate(**single(prompts, 3), **options, first_chunk=first_chunk)
        seen = []
        for _ in num_passes:
            next(steps)
            seen.append(len(passes))
        assert seen == num_passes
        assert next(steps).drafts == (BACKBONE,) if first_chunk == "committed" else True
    handle.remove()
    committed = new_tokens(model, prompts, mtp_inference_mode=[2, 3])
    mixed = new_tokens(model, prompts, mtp_inference_mode=[2, 3], acceptance=1, first_chunk="committed")
    assert [row[:5] for row in mixed] == [row[:5] for row in committed] and mixed != committed
    begun = {
        "input_ids": torch.cat([prompts["input_ids"], torch.tensor(mixed)[:, :5]], dim=1),
        "attention_mask": torch.cat([prompts["attention_mask"], torch.ones((8, 5), dtype=torch.int64)], dim=1),
    }
    rest = new_tokens(model, begun, mtp_inference_mode="vanilla", max_new_tokens=19)
    assert [row[5:] for row in mixed] == rest


def test_embeddings_and_continuous_speech():
    model, ids = make_plus_model(2), torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(1))
    places = torch.stack([torch.zeros(1, 6, dtype=torch.int64), torch.arange(1, 7)[None]])
    audio = {"audios": random_audios(2), "audio_indices": [places]}
    expected = new_tokens(model, {"input_ids": ids}, **audio, mtp_inference_mode="vanilla")
    assert new_tokens(model, {"input_ids": ids}, **audio, acceptance=1) == expected
    assert expected[0] != new_tokens(model, {"input_ids": ids}, mtp_inference_mode="vanilla")[0]
    everything = {**audio, "acceptance": 1e-38}
    committed = new_tokens(model, {"input_ids": ids}, **audio)
    assert [row[:-1] for row in new_tokens(model, {"input_ids": ids}, **everything)] == [row[:-1] for row in committed]
    embeds = model.get_input_embeddings()(ids)
    for acceptance in (1, 1e-38):
        only_embeds = model.generate(inputs_embeds=embeds, **GREEDY, acceptance=acceptance)
        assert only_embeds.tolist() == new_tokens(model, {"input_ids": ids}, acceptance=acceptance)


def test_without_a_cache_and_with_a_sliding_window(prompts):
    fields = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    for model, more in ((make_agreeing_model(2, **fields), {}), (make_agreeing_model(2), {"use_cache": False})):
        expected = new_tokens(model, prompts, mtp_inference_mode="vanilla", **more)
        assert new_tokens(model, prompts, acceptance=1, **more) == expected
        full = new_tokens(model, prompts, **more)
        assert [row[:-1] for row in new_tokens(model, prompts, acceptance=1e-38, **more)] == [row[:-1] for row in full]


def test_the_generation_config_may_set_the_acceptance(prompts):
    model = make_model(2)
    committed, verified = new_tokens(model, prompts), new_tokens(model, prompts, acceptance=1)
    assert committed != verified
    model.generation_config.acceptance = 1
    assert new_tokens(model, prompts) == verified and new_tokens(model, prompts, acceptance=0) == committed


@pytest.mark.parametrize("acceptance", [-0.1, 1.01, float("nan"), "1", True])
def test_acceptance_outside_its_range_is_an_error(model, prompts, acceptance):
    for plan in ("boost", "vanilla"):
        with pytest.raises(ValueError, match="acceptance must be a number from 0 to 1, got"):
            new_tokens(model, prompts, acceptance=acceptance, mtp_inference_mode=plan)


def test_other_errors(model, prompts):
    with pytest.raises(ValueError, match="first_chunk must be one of .*, got 'fast'"):
        new_tokens(model, prompts, first_chunk="fast")
    with pytest.raises(ValueError, match="work with greedy search and sampling, got beam_search"):
        new_tokens(model, prompts, acceptance=1, num_beams=2)
    cache = model(**single(prompts, 0), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values must be empty, got 12 tokens"):
        new_tokens(model, single(prompts, 0), acceptance=1, past_key_values=cache)


def test_no_effect_without_modules(prompts):
    """In the plan or in the model; the backbone vouches for its own tokens, also in a beam search."""
    model = make_model(0)
    expected = new_tokens(model, prompts, mtp_inference_mode="vanilla")
    assert new_tokens(model, prompts, acceptance=1) == expected
    assert new_tokens(model, prompts, acceptance=1, first_chunk="committed") == expected
    beams = {"mtp_inference_mode": "vanilla", "num_beams": 2}
    assert new_tokens(model, prompts, acceptance=1, **beams) == new_tokens(model, prompts, **beams)

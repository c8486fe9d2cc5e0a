"""The MTP modules as drafts of the engine: hidden states and ids of our own modules, with the engine's attention.

The engine's loop over distinct modules needs a GPU; here the same calls are made by hand, on the draft model and the
caches of a running engine.
"""

import pytest
import torch

pytest.importorskip("vllm", reason="needs the environment of third_party/vllm_plugin/setup_env.sh")
from engines import accepted_by_pass, count, engine_ids, random_prompts, run_engine, vanilla_ids
from models.toy_models import make_agreeing_model
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

NUM_MODULES, NEW_TOKENS = 3, 24
ONE_DRAFT = {"method": "mtp", "num_speculative_tokens": 1}


@pytest.fixture(scope="module")
def model():
    return make_agreeing_model(NUM_MODULES, tie_word_embeddings=True, max_position_embeddings=256)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    model.save_pretrained(folder := tmp_path_factory.mktemp("tied"))
    with run_engine(folder, speculative_config=ONE_DRAFT) as engine:
        yield engine


def test_verified_drafts_of_the_first_module_change_nothing(model, engine):
    prompts = random_prompts(model.config.vocab_size)
    answers = vanilla_ids(model, prompts, NEW_TOKENS + 1)
    assert engine_ids(engine, prompts, NEW_TOKENS) == [answer[:NEW_TOKENS] for answer in answers]
    rows = zip(prompts, answers, strict=True)
    passes = [accepted for row in rows for accepted in accepted_by_pass(model, *row, NEW_TOKENS, 1)]
    assert count(engine, "accepted_tokens") == sum(passes) > 0.2 * len(passes)


def run_module(runner, module, ids, hidden_states, start):
    """Run a module on tokens at positions from `start`, whose earlier ones are in its cache. Returns hidden states."""
    drafter, num_tokens = runner.drafter, len(ids)
    block, size = 3, drafter.draft_attn_groups[0].kv_cache_spec.block_size
    positions = torch.arange(start, start + num_tokens)
    assert start + num_tokens <= size
    offsets = torch.tensor([0, num_tokens], dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=offsets,
        query_start_loc_cpu=offsets,
        seq_lens=torch.tensor([start + num_tokens], dtype=torch.int32),
        num_reqs=1,
        num_actual_tokens=num_tokens,
        max_query_len=num_tokens,
        max_seq_len=start + num_tokens,
        block_table_tensor=torch.tensor([[block]], dtype=torch.int32),
        slot_mapping=block * size + positions,
    )
    _, metadata = drafter.build_per_group_and_layer_attn_metadata(common)
    slots = dict.fromkeys(metadata, common.slot_mapping)
    with torch.inference_mode(), set_forward_context(metadata, runner.vllm_config, num_tokens, slot_mapping=slots):
        return drafter.model(torch.tensor(ids), positions, hidden_states, spec_step_idx=module)


def run_cascade(worker, ids, hidden_states, cuts):
    """Run all modules, each in several calls that end at `cuts`; returns hidden states and logits of each."""
    runner, states, logits = worker.model_runner, [], []
    for module in range(NUM_MODULES):
        shifted = ids[module + 1 :]
        ends = [min(cut, len(shifted)) for cut in (*cuts, len(ids))]
        starts = [0, *ends[:-1]]
        parts = [
            run_module(runner, module, shifted[start:end], hidden_states[start:end], start)
            for start, end in zip(starts, ends, strict=True)
        ]
        hidden_states = torch.cat(parts)
        states.append(hidden_states)
        logits.append(runner.drafter.model.compute_logits(hidden_states, spec_step_idx=module))
    return states, logits


@pytest.mark.parametrize("cuts", [(), (17,), (5, 6, 7, 30)], ids=["at once", "two calls", "one by one"])
def test_the_cascade_is_that_of_our_modules(model, engine, cuts):
    ids = torch.randint(model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        hidden = model.model(input_ids=ids[None]).last_hidden_state
        chain = list(model.mtp_chain(model.model.embed_tokens(ids[None]), hidden, torch.arange(40)[None]))
        best = [model.lm_head(ours).argmax(-1) for ours in chain]
    ((states, logits),) = engine.collective_rpc(run_cascade, args=(ids.tolist(), hidden[0], cuts))
    for depth in range(1, NUM_MODULES + 1):
        known = slice(0, 40 - depth)  # the last places have no token to read
        torch.testing.assert_close(states[depth - 1], chain[depth - 1][0, known], rtol=1e-4, atol=1e-4)
        assert torch.equal(logits[depth - 1].argmax(-1), best[depth - 1][0, known])

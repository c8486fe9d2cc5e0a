"""All modules in cascade, by the engine's own loop over them, which only its model runner for GPUs has.

Counts of accepted drafts are held to our own modules in the same way as in test_modules.py, which runs without a GPU.
"""

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM and this plug-in")
from engines import accepted_by_pass, count, engine_ids, random_prompts, run_engine, vanilla_ids
from models.toy_models import make_agreeing_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NUM_MODULES, NEW_TOKENS = 10, 45
DRAFTS = {"method": "mtp", "num_speculative_tokens": NUM_MODULES}
SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}  # heads of 64


@pytest.fixture(scope="module")
def model():
    model = make_agreeing_model(NUM_MODULES, disagreement=0.02, **SIZES)
    with torch.no_grad():
        model.model.embed_tokens.weight *= 5  # about as large as the modules read them, behind a norm
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    model.save_pretrained(folder := tmp_path_factory.mktemp("cascade"))
    return folder


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_verified_drafts_are_those_of_our_modules(model, folder, eager):
    prompts = random_prompts(model.config.vocab_size)
    answers = vanilla_ids(model, prompts, NEW_TOKENS + NUM_MODULES)
    rows = zip(prompts, answers, strict=True)
    passes = [accepted for row in rows for accepted in accepted_by_pass(model, *row, NEW_TOKENS, NUM_MODULES)]
    expected = [sum(accepted >= depth for accepted in passes) for depth in range(1, NUM_MODULES + 1)]
    assert expected[0] > expected[-1] > 0
    with run_engine(folder, enforce_eager=eager, speculative_config=DRAFTS) as engine:
        assert engine_ids(engine, prompts, NEW_TOKENS) == [answer[:NEW_TOKENS] for answer in answers]
        assert count(engine, "accepted_tokens_per_pos") == expected


def test_drafts_that_are_accepted_unread_are_committed_tokens(model, folder):
    """Each pass commits all ten drafts, as the plan 1 10 does without verification."""
    prompts = random_prompts(model.config.vocab_size, number=20)
    options = {"mtp_inference_mode": [1, NUM_MODULES], "acceptance": 0.0, "do_sample": False, "pad_token_id": 0}
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, **options)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    synthetic = {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": NUM_MODULES + 1}
    with run_engine(folder, speculative_config=DRAFTS | synthetic) as engine:
        assert engine_ids(engine, prompts, NEW_TOKENS) == expected

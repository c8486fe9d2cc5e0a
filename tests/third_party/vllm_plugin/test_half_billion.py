"""Greedy ids of the engine for random models with the sizes of Qwen2.5-0.5B."""

import gc

import pytest
import torch

pytest.importorskip("vllm", reason="needs the environment of third_party/vllm_plugin/setup_env.sh")
from engines import engine_ids, gap_where_they_part, random_prompts, run_engine, vanilla_ids

from vita_audio.models import Qwen2MTPConfig, Qwen2MTPForCausalLM

pytestmark = pytest.mark.slow
NEW_TOKENS = 8
SIZES = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 25,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


BFLOAT16_STEP = 2**-6  # between neighbouring numbers from 2 to 4, where the best logits are


@pytest.mark.parametrize(
    "tied, dtype, tolerance",
    [(True, "float32", 1e-4), (False, "float32", 1e-4), (True, "bfloat16", 4 * BFLOAT16_STEP)],
)
def test_ids_are_those_of_vanilla(tmp_path, tied, dtype, tolerance):
    """Where an answer differs, the logits of our two best tokens are equal but for rounding, which then decides."""
    torch.manual_seed(0)
    prompts = random_prompts(SIZES["vocab_size"], longest=12)
    model = Qwen2MTPForCausalLM(Qwen2MTPConfig(**SIZES, tie_word_embeddings=tied)).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path)
    expected = vanilla_ids(model.to(getattr(torch, dtype)), prompts, NEW_TOKENS)
    del model  # the engine has the memory to itself
    gc.collect()
    with run_engine(tmp_path, dtype=dtype) as engine:
        found = engine_ids(engine, prompts, NEW_TOKENS)
    differing = [row for row in zip(prompts, expected, found, strict=True) if row[1] != row[2]]
    model = Qwen2MTPForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    largest_gap = max((gap_where_they_part(model, *row) for row in differing), default=0.0)
    print(f"{dtype}, tied {tied}: {len(differing)} of {len(prompts)} answers differ, largest gap {largest_gap:.4f}")
    assert largest_gap <= tolerance
    assert dtype == "bfloat16" or len(differing) <= 2

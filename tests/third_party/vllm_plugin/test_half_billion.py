"""Greedy ids of the engine for a random model with the sizes of Qwen2.5-0.5B and an untied head."""

import gc

import pytest
import torch

pytest.importorskip("vllm", reason="needs the environment of third_party/vllm_plugin/setup_env.sh")
from engines import engine_ids, random_prompts, run_engine, ties, vanilla_ids

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


def test_ids_are_those_of_vanilla(tmp_path):
    """Where a row differs, our own two best logits must be as good as equal: rounding decides between them."""
    torch.manual_seed(0)
    prompts = random_prompts(SIZES["vocab_size"])
    model = Qwen2MTPForCausalLM(Qwen2MTPConfig(**SIZES)).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path)
    expected = vanilla_ids(model.float(), prompts, NEW_TOKENS)
    del model  # the engine has the memory to itself
    gc.collect()
    with run_engine(tmp_path) as engine:
        found = engine_ids(engine, prompts, NEW_TOKENS)
    num_differing = sum(ours != theirs for ours, theirs in zip(expected, found, strict=True))
    print(f"{num_differing} of {len(prompts)} rows differ")
    if num_differing:
        model = Qwen2MTPForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert ties(model, prompts, expected, found) == []
    assert num_differing <= 2

"""Greedy ids of the engine, which batches 200 prompts, are those of our own decoding without modules."""

import pytest
import torch

pytest.importorskip("vllm", reason="needs the environment of third_party/vllm_plugin/setup_env.sh")
from engines import engine_ids, random_prompts, run_engine, vanilla_ids
from models.toy_models import make_model
from vllm import SamplingParams, TokensPrompt
from vllm.exceptions import VLLMValidationError

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model():
    return make_model(3, max_position_embeddings=256)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    model.save_pretrained(folder := tmp_path_factory.mktemp("untied"))
    with run_engine(folder) as engine:
        yield engine


def test_ids_are_those_of_vanilla(model, engine):
    """Heads of 8 elements, which the CPU back end has no kernels for, are padded to 32."""
    prompts = random_prompts(model.config.vocab_size)
    expected = vanilla_ids(model, prompts, NEW_TOKENS)
    assert engine_ids(engine, prompts, NEW_TOKENS) == expected
    assert len({tuple(ids) for ids in expected}) > 150  # the answers depend on the prompts


def test_the_modules_are_left_out(engine):
    (names,) = engine.collective_rpc(lambda worker: [name for name, _ in worker.get_model().named_parameters()])
    layers = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
    assert layers == {"0", "1"} and not any("mtp" in name for name in names)


def test_a_prompt_beyond_the_length_gets_one_line(engine):
    with pytest.raises(VLLMValidationError, match="maximum context length is 256 tokens") as caught:
        engine.generate(TokensPrompt(prompt_token_ids=[5] * 257), SamplingParams(max_tokens=1), use_tqdm=False)
    assert "\n" not in str(caught.value)
    assert torch.tensor(engine_ids(engine, [[5] * 200], 4)).shape == (1, 4)  # and the engine goes on

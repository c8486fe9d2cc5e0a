"""Prompts with continuous audio go to the engine as embeddings; greedy ids are those of our own decoding."""

import pytest
import torch

pytest.importorskip("vllm", reason="needs the environment of third_party/vllm_plugin/setup_env.sh")
from engines import engine_ids, run_engine
from models.toy_models import make_plus_model, random_audios

NUM_QUERIES, NEW_TOKENS = 4, 24
PLACES = 3  # tokens in front of the audio


@pytest.fixture(scope="module")
def model():
    return make_plus_model(2, max_position_embeddings=256)


@pytest.fixture(scope="module")
def prompts(model):
    """Inputs of `generate`, one prompt each."""
    torch.manual_seed(5)
    inputs = []
    for audio in random_audios(*torch.randint(1, 30, (40,)).tolist()):
        num_rows = NUM_QUERIES + len(audio)
        places = torch.stack([torch.zeros(num_rows, dtype=torch.long), torch.arange(PLACES, PLACES + num_rows)])
        ids = torch.randint(model.config.vocab_size, (1, PLACES + num_rows + 5))
        inputs.append({"input_ids": ids, "audios": [audio], "audio_indices": [places[:, None]]})
    return inputs


def test_ids_are_those_of_vanilla(model, prompts, tmp_path):
    model.save_pretrained(tmp_path)
    options = {"mtp_inference_mode": "vanilla", "do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    expected, embeddings = [], []
    for inputs in prompts:
        ids = inputs["input_ids"]
        expected.append(model.generate(**inputs, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :])
        with torch.inference_mode():
            rows = model.model.embed_tokens(ids)
            embeddings.append(model.model.insert_audio(rows, inputs["audios"], inputs["audio_indices"])[0])
    with run_engine(tmp_path, enable_prompt_embeds=True) as engine:
        assert engine_ids(engine, embeddings, NEW_TOKENS) == [ids.tolist() for ids in expected]
    assert len({tuple(ids.tolist()) for ids in expected}) > 30  # the answers depend on the audio

"""The encoder against the public one: names, sizes, hidden states and codes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_folders import ASSETS
from torch import nn

from vita_audio.audio_tokenizers.whisper_vq import (
    WhisperVQConfig,
    WhisperVQEncoder,
    nearest_codewords,
)

TINY = dict(d_model=8, encoder_layers=1, encoder_attention_heads=2, pooling_position=1, quantize_position=1)
VARIANTS = ("vq_feat", "vq_feat_variant_causalattn", "vq_feat_variant_tail")


def golden_cases():
    return [
        pytest.param(folder, case, id=f"{folder}-{case['index']}")
        for folder in VARIANTS
        for case in json.loads((ASSETS / folder / "case.json").read_text())["cases"]
    ]


@pytest.fixture(scope="module")
def loaded():
    """Variant -> encoder, loading report and expected tensors."""
    result = {}
    for name in VARIANTS:
        encoder, report = WhisperVQEncoder.from_pretrained(ASSETS / name, output_loading_info=True)
        result[name] = encoder, report, load_file(ASSETS / name / "tensors.safetensors")
    return result


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_load_completely(loaded, name):
    assert not any(loaded[name][1].values())


@pytest.mark.parametrize(("name", "case"), golden_cases())
@torch.inference_mode()
def test_matches_reference(loaded, name, case):
    encoder, _, tensors = loaded[name]
    expected = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{case['index']}.")}
    output = encoder(expected["input_features"].float(), expected["attention_mask"])
    kept = expected["token_mask"].bool()
    assert torch.equal(output.token_mask, kept)
    assert output.quantized_token_ids[kept].tolist() == case["tokens"]
    for key, relative in (("pre_vq_hidden", 1e-4), ("last_hidden_state", 0)):
        if key in expected:
            torch.testing.assert_close(getattr(output, key)[kept], expected[key][kept], atol=2e-4, rtol=relative)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.inference_mode()
def test_padding_changes_no_code(loaded, attention):
    encoder, _, tensors = loaded["vq_feat"]
    features = tensors["2.input_features"].float()  # (1, mels, 504)
    encoder.set_attn_implementation(attention)
    alone = encoder(features)
    padded = torch.cat([features, torch.randn(1, features.shape[1], 200)], dim=2)
    output = encoder(padded, (torch.arange(704) < 504)[None])
    encoder.set_attn_implementation("sdpa")
    torch.testing.assert_close(output.pre_vq_hidden[:, :63], alone.pre_vq_hidden, atol=1e-4, rtol=1e-4)
    assert torch.equal(output.quantized_token_ids[:, :63], alone.quantized_token_ids)
    assert output.token_mask.tolist() == [[True] * 63 + [False] * 25]
    assert output.frame_hidden.shape == (1, 352, 64) and output.frame_mask.sum() == 252


def test_released_names_and_sizes():
    facts = json.loads((ASSETS / "glm4voice_tokenizer_config.json").read_text())
    expected = json.loads((ASSETS / "keys_whisper_vq_encoder.json").read_text())
    with torch.device("meta"):
        encoder = WhisperVQEncoder(WhisperVQConfig(**facts["config"]))
    assert {name: list(value.shape) for name, value in encoder.state_dict().items()} == expected["keys"]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected["parameters"]


def test_block_causal_mask_shows_whole_blocks_and_no_padding():
    encoder = WhisperVQEncoder(WhisperVQConfig(**TINY, quantize_causal_block_size=2))
    visible = encoder._attention_mask(torch.tensor([[True] * 4 + [False]]), 1, 1, torch.float32)[0, 0] == 0
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert visible.int().tolist() == expected


def test_nearest_codewords_agree_with_distances():
    torch.manual_seed(0)
    vectors, codebook = torch.randn(3, 50, 7), torch.randn(20, 7)
    codewords, ids = nearest_codewords(vectors, codebook)
    assert torch.equal(ids, torch.cdist(vectors, codebook).argmin(-1))
    assert torch.equal(codewords, codebook[ids])


def test_bf16_autocast_trains(loaded):
    encoder, _, tensors = loaded["vq_feat"]
    features = tensors["1.input_features"].float().repeat(2, 1, 1)
    mask = torch.ones(2, features.shape[2])
    mask[1] = 0  # a row of nothing but padding must not spoil the batch
    encoder.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = encoder(features, mask)
    gradients = torch.autograd.grad(output.pre_vq_hidden.float().pow(2).mean(), encoder.conv1.weight)
    encoder.eval()
    assert gradients[0].isfinite().all() and gradients[0].any()


@pytest.mark.parametrize("frames", [0, 12, 3008])
def test_wrong_number_of_frames_is_refused(loaded, frames):
    with pytest.raises(ValueError, match=f"multiple of 8, at most 3000 and not 0, got {frames}"):
        loaded["vq_feat"][0](torch.zeros(1, 16, frames))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"pooling_type": "sum"}, "'avg' or 'max', got 'sum'"), ({"encoder_layers": 2}, "got 16, 16, 2")],
)
def test_impossible_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WhisperVQConfig(**{"encoder_layers": 16, **fields})


def test_fresh_encoder_has_sinusoidal_positions_and_fixed_codebook():
    encoder = WhisperVQEncoder(WhisperVQConfig(**TINY))
    assert not encoder.codebook.weight.requires_grad and not encoder.embed_positions.weight.requires_grad
    assert isinstance(encoder.embed_positions2, nn.Embedding)
    torch.testing.assert_close(encoder.embed_positions2.weight[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(encoder.ema_weight, encoder.codebook.weight)

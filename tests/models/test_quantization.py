"""Int8 weights: close to the floats, smaller, usable in every mode; wrong kinds and devices in one line."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from toy_models import make_agreeing_model, make_model

from vita_audio.command_line import QUANTIZATIONS
from vita_audio.models import quantization
from vita_audio.models.quantization import Int8Linear, quantize_weights


@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (2, 40, 192)])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_layer_is_close_to_the_float_one(shape, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(shape[-1], 33, bias=bias).requires_grad_(False), torch.randn(shape)
    layer = Int8Linear(linear)
    expected = linear(x)
    assert layer(x).shape == expected.shape and layer(x).dtype == x.dtype
    # Rounding to 127 steps, and products in bfloat16: half a percent on these weights.
    assert float((layer(x) - expected).norm() / expected.norm()) < 0.01
    assert float((layer.weight - linear.weight).abs().max()) < float(linear.weight.abs().max()) / 127


def test_rows_of_zeros_stay_zero():
    linear = nn.Linear(32, 4, bias=False)
    linear.weight.data[1] = 0
    assert not Int8Linear(linear)(torch.ones(1, 32))[0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"acceptance": 1}, {"module_tokens": range(3, 101)}])
def test_a_quantized_model_generates_in_every_mode(ids, options, dtype):
    model = make_model(2).to(dtype)
    quantize_weights(model, "int8")
    kinds = {
        type(module) for name, module in model.named_modules() if name.endswith(("q_proj", "lm_head", "gate_proj"))
    }
    assert kinds == {Int8Linear}
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear  # 48 inputs
    assert type(model.mtp_projs[0]) is Int8Linear and model.dtype == dtype
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": 200}
    answer = model.generate(ids, **settings, mtp_inference_mode="boost", **options)
    assert answer.shape == (2, 24)
    if "acceptance" in options and dtype == torch.float32:  # what the backbone alone says
        assert torch.equal(answer, model.generate(ids, **settings, mtp_inference_mode="vanilla"))


def test_most_choices_and_half_the_bytes_remain(ids):
    model, exact = make_agreeing_model(2), make_agreeing_model(2)
    before = sum(value.nbytes for value in model.state_dict().values())
    quantize_weights(model, "int8")
    assert sum(value.nbytes for value in model.state_dict().values()) < 0.6 * before
    same = model(ids).logits.argmax(-1) == exact(ids).logits.argmax(-1)
    assert float(same.float().mean()) > 0.9


def test_wrong_kinds_and_devices_are_refused():
    model = make_model(1)
    assert set(quantization.TORCHAO_CONFIGS) == set(QUANTIZATIONS)
    with pytest.raises(ValueError, match="quantize must be one of int8, int4, got 'int3'"):
        quantize_weights(model, "int3")
    with pytest.raises(ValueError, match="int4 weights need a GPU, the model is on the CPU; use int8"):
        quantize_weights(model, "int4")
    with pytest.raises(ValueError, match="must be on one CPU or GPU, got meta"):
        quantize_weights(model.to("meta"), "int8")
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


@pytest.mark.skipif(find_spec("torchao") is not None, reason="for an environment without torchao")
def test_a_gpu_without_torchao_is_told_what_to_install():
    with pytest.raises(
        ImportError, match="quantizing to int8 on a GPU needs the package torchao .* pip install 'vita-audio"
    ):
        quantization._quantize_with_torchao(make_model(1), "int8")


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_torchao_holds_the_same_numbers():
    """The path of a GPU, on the CPU: the layers that are replaced, and their weights."""
    ours, theirs = make_model(1), make_model(1)
    quantize_weights(ours, "int8")
    quantization._quantize_with_torchao(theirs, "int8")
    name = "model.layers.0.self_attn.q_proj"
    assert "Int8" in type(theirs.lm_head.weight).__name__
    expected = theirs.get_submodule(name).weight.dequantize()
    torch.testing.assert_close(ours.get_submodule(name).weight, expected, atol=2e-2, rtol=2e-2)

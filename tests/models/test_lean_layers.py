"""Layers without the cost of modules: the numbers of transformers' layers, and only where nothing was added to them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from toy_models import FAMILIES, make_model, make_plus_model

from vita_audio.models.lean_layers import LeanLayers
from vita_audio.models.slots import Slots, place_index

MAKERS = {name: partial(make_model, **options) for name, options in FAMILIES.items()} | {"plus": make_plus_model}
GREEDY = {"do_sample": False, "max_new_tokens": 10, "mtp_inference_mode": "turbo"}


def read_both(model, dtype, starts, width):
    """Read twice with both, after earlier positions; return hidden states and keys of each."""
    results, num_layers = [], model.config.num_hidden_layers
    for layers in (model, LeanLayers.of(model)):
        torch.manual_seed(3)
        slots, outputs = Slots(num_layers, 3, len(starts), 32), []
        for begin, time in (([0] * len(starts), 7), (starts, width)):
            index = place_index(begin, time)
            positions = torch.tensor(begin)[:, None] + torch.arange(time)
            slots.aim(index, max(begin) + time)
            embeds, earlier = torch.randn(2, len(starts), time, 32).to(dtype)
            keys = torch.arange(max(begin) + time)
            mask = None if time in (1, 7) else (keys <= positions[..., None])[:, None]
            options = {"position_embeddings": model.model.rotary_emb(embeds, positions), "slots": slots}
            for depth in range(3):
                options["masks"] = {"full_attention": mask}
                outputs.append(layers.read_depth(depth, embeds, earlier, positions, **options))
        results.append((outputs, slots.keys, slots.values))
    return results


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("starts, width", [([7], 1), ([7, 7], 1), ([7], 4), ([7, 5, 6], 4)])
@torch.no_grad()
def test_they_compute_what_the_modules_compute(make, dtype, starts, width):
    """Up to the order of sums in attention, which transformers gives repeated heads where there is a mask."""
    model = make(2).to(dtype)
    modules, lean = read_both(model, dtype, starts, width)
    if width == 1:
        torch.testing.assert_close(lean, modules, rtol=0, atol=0)
    else:
        torch.testing.assert_close(lean, modules, atol=2e-5 if dtype == torch.float32 else 0.05, rtol=1e-5)


class Adapter(nn.Module):
    def forward(self, weight):
        return weight * 1.5


def change(model, how):
    """Make the last layer do something else, so that answers differ from those of its weights."""
    layer = model.model.layers[-1]
    if how == "hook":
        layer.mlp.down_proj.register_forward_hook(lambda module, args, output: output * 1.5)
    elif how == "hook on the layer":
        layer.register_forward_hook(lambda module, args, output: output.flip(-1))
    elif how == "patched forward":
        forward = layer.mlp.forward
        layer.mlp.forward = lambda states: forward(states) * 1.5
    elif how == "another class":
        layer.mlp.down_proj = nn.Sequential(layer.mlp.down_proj, nn.Tanh())
    elif how == "parametrized":
        parametrize.register_parametrization(layer.self_attn.o_proj, "weight", Adapter())
    elif how == "eager":
        model.config._attn_implementation = "eager"
    return model


@pytest.mark.parametrize(
    "how", ["hook", "hook on the layer", "patched forward", "another class", "parametrized", "eager"]
)
def test_changed_layers_are_called_as_modules(ids, how):
    model = change(make_model(2), how)
    assert LeanLayers.of(model) is None and LeanLayers.of(make_model(2)) is not None
    options = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
    output, plain = model.generate(ids, **options), make_model(2).generate(ids, **options)
    if how != "eager":
        assert not torch.allclose(output.logits[2], plain.logits[2], atol=1e-3)
    else:
        torch.testing.assert_close(output.logits, plain.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_biases_behind_attention_are_left_to_the_modules(family):
    assert LeanLayers.of(make_model(2, **FAMILIES[family])) is not None
    assert LeanLayers.of(make_model(2, attention_bias=True, **FAMILIES[family])) is None


def test_autocast_and_global_hooks_are_respected():
    model = make_model(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LeanLayers.of(model) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *call: None)
    assert LeanLayers.of(model) is None
    handle.remove()
    assert LeanLayers.of(model) is not None

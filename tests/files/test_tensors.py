"""Weight files of every kind into modules, or one error that names the file; nothing in them runs."""

import os

import pytest
import torch
from broken_folders import cut_off, make_pointer
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, modeling_utils

from vita_audio.files.tensors import fill_module, find_file, read_tensors, share_weights


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def weights():
    return {name: value.half() for name, value in nn.BatchNorm1d(3).state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "nested.bin"])
def test_a_module_is_filled_from_every_kind_of_file(tmp_path, weights, name):
    weights |= {"num_batches_tracked": torch.tensor(7)}
    if name.endswith(".safetensors"):
        save_file(weights, tmp_path / name)
    else:
        torch.save({"state_dict": weights, "step": 3} if "nested" in name else weights | {"step": 3}, tmp_path / name)
    loaded = read_tensors(tmp_path / name)
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[key], weights[key]) for key in weights)
    with torch.device("meta"):
        module = nn.BatchNorm1d(3)
    fill_module(module, loaded, tmp_path / name, "config.yaml")
    assert module.weight.dtype == torch.float32 and int(module.num_batches_tracked) == 7
    torch.testing.assert_close(module.running_var, weights["running_var"].float())
    assert {value.device.type for value in read_tensors(tmp_path / name, "meta").values()} == {"meta"}


def test_what_does_not_fit_is_named(tmp_path):
    weights = nn.RNNCell(2, 3).state_dict()
    weights["bias"] = weights.pop("bias_ih")
    weights["weight_hh"] = torch.zeros(3, 4)
    with pytest.raises(ValueError) as error:
        fill_module(nn.RNNCell(2, 3), weights, tmp_path / "a.pt", "config.yaml")
    found = "missing: bias_ih (1); unexpected: bias (1); of another shape: weight_hh (1)"
    assert str(error.value) == f"{tmp_path / 'a.pt'} does not fit config.yaml: {found}"


def test_modules_that_know_older_names_of_their_weights_take_them(tmp_path):
    module = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    older = {"bias": torch.zeros(3), "weight_g": torch.ones(3, 1), "weight_v": torch.ones(3, 2)}
    fill_module(module, older, tmp_path / "a.pt", "config.json")
    torch.testing.assert_close(module.weight, torch.full((3, 2), 0.5**0.5))


def test_damaged_files_are_one_clear_error(tmp_path, weights):
    path = tmp_path / "a.safetensors"
    for damage, message in ((cut_off, "a.safetensors is cut off"), (make_pointer, "a.safetensors is a Git LFS")):
        save_file(weights, path)
        damage(path)
        with pytest.raises(ValueError, match=message):
            read_tensors(path)
    torch.save([1], tmp_path / "b.pt")
    with pytest.raises(ValueError, match="b.pt cannot be read as weights: it holds a list, not a state dict; get"):
        read_tensors(tmp_path / "b.pt")
    with pytest.raises(FileNotFoundError, match="c.bin is missing"):
        read_tensors(tmp_path / "c.bin")
    with pytest.raises(FileNotFoundError, match=f"no c.bin or d.pt in {tmp_path}; get the folder again"):
        find_file(tmp_path, "c.bin", "d.pt")
    assert find_file(tmp_path, "c.bin", "b.pt") == tmp_path / "b.pt"


def test_nothing_in_a_file_runs(tmp_path):
    torch.save({"weight": Attack(tmp_path / "made")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt cannot be read as weights"):
        read_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()


def llama(**changes):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(**{**sizes, "num_key_value_heads": 2, "vocab_size": 16, **changes})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_shares_the_weights_of_another_and_has_more(monkeypatch, tied):
    """It never asks for the memory of a whole model, as transformers does before it loads one on a GPU."""
    whole = "caching_allocator_warmup"
    monkeypatch.setattr(modeling_utils, whole, lambda *arguments: pytest.fail("as much memory as the model has"))
    base = LlamaForCausalLM(llama(tie_word_embeddings=tied)).bfloat16()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model, missing = share_weights(base, llama(num_hidden_layers=3, tie_word_embeddings=tied), "three layers")
    shared = base.state_dict(keep_vars=True)
    assert missing and all(name.startswith("model.layers.2.") for name in missing)
    for name, value in model.state_dict(keep_vars=True).items():
        assert (name in missing) == (name not in shared) and value.dtype == torch.bfloat16
        assert name in missing or value.data_ptr() == shared[name].data_ptr()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied and not model.training
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    same, _ = share_weights(base, llama(tie_word_embeddings=tied), "two layers")
    ids = torch.arange(16)[None]
    assert torch.equal(same(ids).logits, base.eval()(ids).logits)


def test_weights_of_another_shape_are_not_shared():
    base = LlamaForCausalLM(llama())
    base.name_or_path = "models/base"
    with pytest.raises(ValueError, match="the weights of models/base do not fit the other: of another shape: lm_head"):
        share_weights(base, llama(vocab_size=20), "the other")
    with pytest.raises(ValueError, match="do not fit the other: unexpected: model.layers.1.input_layernorm.weight"):
        share_weights(base, llama(num_hidden_layers=1), "the other")

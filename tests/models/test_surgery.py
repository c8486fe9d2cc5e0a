"""Initialising new modules and choosing what trains."""

import pytest
import torch
from safetensors.torch import load_file
from toy_models import load_case, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from vita_audio.models.surgery import init_missing_mtp, mtp_parameter_patterns, set_trainable

STEPS = load_case("stage_init_mtp0_1_3").expected["steps"]


def load_step(step):
    folder = load_case("stage_init_mtp0_1_3").folder
    config = AutoConfig.from_pretrained(folder / step["target_config"])
    model, info = AutoModelForCausalLM.from_pretrained(
        folder / step["source_checkpoint"], config=config, output_loading_info=True
    )
    return model, info["missing_keys"], load_file(folder / step["result_checkpoint"] / "model.safetensors")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"to {step['num_nextn_predict_layers']} modules")
def test_stage_initialisation_matches_the_reference(step):
    model, missing_keys, expected = load_step(step)
    assert init_missing_mtp(model, missing_keys) == sorted(step["missing_keys"])
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, origin in step["tensor_map"].items():
        if origin.get("dist") == "normal":
            assert state[name].std().item() == pytest.approx(origin["std"], rel=0.1)  # 1152 draws: 2 % is one sigma
            assert abs(state[name].mean().item()) < 0.1 * origin["std"]
        else:
            assert torch.equal(state[name], expected[name]), name


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"to {step['num_nextn_predict_layers']} modules")
def test_modules_alone_train_when_the_language_model_is_frozen(step):
    model, _, _ = load_step(step)
    trainable = set_trainable(model, mtp_parameter_patterns(model.config))
    assert sorted(trainable) == sorted(step["trainable_with_language_model_freeze"])
    assert sorted(name for name, p in model.named_parameters() if p.requires_grad) == sorted(trainable)
    assert len(set_trainable(model, ["*"])) == len(list(model.parameters()))


def test_initialisation_does_not_depend_on_what_the_weights_were():
    model = make_model(1)
    init_missing_mtp(model, ["mtp_projs.0.weight", "mtp_embed_norms.0.weight", "mtp_hidden_norms.0.weight"])
    assert torch.equal(model.mtp_embed_norms[0].weight, torch.ones(32))
    assert model.mtp_projs[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_copies_do_not_share_memory():
    model = make_model(2)
    init_missing_mtp(model, ["mtp_projs.1.weight"])
    with torch.no_grad():
        model.mtp_projs[0].weight.zero_()
    assert model.mtp_projs[1].weight.abs().sum() > 0


def test_a_missing_backbone_is_an_error():
    with pytest.raises(ValueError, match=r"also lacks model.layers.1.mlp.up_proj.weight \(1 in all\)"):
        init_missing_mtp(make_model(1), ["model.layers.1.mlp.up_proj.weight", "mtp_projs.0.weight"])


def test_patterns_match_whole_names_only():
    model = make_model(10)
    chosen = set_trainable(model, ["model.layers.1.*"])
    assert {name.split(".")[2] for name in chosen} == {"1"}  # not 10 and 11


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'layers.3' matches no parameter; parameters begin with lm_head.weight"):
        set_trainable(make_model(2), ["model.norm.weight", "layers.3"])


@pytest.mark.parametrize("pattern", ["lm_head.weight", "model.embed_tokens.weight"])
def test_either_name_of_a_tied_parameter_counts(pattern):
    model = make_model(1, tie_word_embeddings=True)
    set_trainable(model, [pattern])
    assert model.lm_head.weight.requires_grad and model.model.embed_tokens.weight.requires_grad


def test_without_modules_no_parameter_belongs_to_one():
    assert mtp_parameter_patterns(make_model(0).config) == []

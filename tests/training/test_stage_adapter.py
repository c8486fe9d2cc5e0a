"""Adapters on toy models: what gets one, that merging changes no number, and that programs take them."""

import copy
import shutil

import pytest
import torch
from models.toy_models import FAMILIES, make_model, make_plus_model, random_audios
from safetensors.torch import load_file
from toy_adapters import ROWS, adapted, save_toy_adapter
from toy_speech_lm import load_toy

from tools.inference_sts import main as answer
from vita_audio.checkpoints.inspection import inspect_checkpoint
from vita_audio.files.tensors import share_weights
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.models.adapters import (
    describe_base,
    load_adapter_weights,
    load_language_model,
    load_on_base,
    merge_adapter,
    save_whole_config,
)
from vita_audio.models.surgery import init_missing_mtp
from vita_audio.training.lora import LoraSettings
from vita_audio.training.parts import parameter_parts
from vita_audio.training.stage_adapter import add_adapter, leave_out_base

NEW = ["mtp_projs.1.weight", "mtp_embed_norms.1.weight", "mtp_hidden_norms.1.weight"]


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def all_depths(model, ids):
    """Return the logits of every depth, (depths, batch, time, vocabulary)."""
    embeds = model.model.embed_tokens(ids)
    hidden = model.model(inputs_embeds=embeds).last_hidden_state
    positions = torch.arange(ids.shape[1])[None]
    return torch.stack([model.lm_head(states) for states in (hidden, *model.mtp_chain(embeds, hidden, positions))])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "lora",
    [
        LoraSettings(r=4),
        LoraSettings(r=4, dora=True),
        LoraSettings(r=4, rslora=True, save=("norm", "mtp_hidden_norms")),
        LoraSettings(r=4, targets=("q_proj", "mtp_projs")),
    ],
    ids=["lora", "dora", "rslora", "targets"],
)
@torch.no_grad()
def test_merged_equals_unmerged(lora, tied, tmp_path):
    base, ids = make_model(2, tie_word_embeddings=tied), torch.arange(60, 100).reshape(2, 20)
    model = adapted(base, lora, new=NEW)
    model.save_pretrained(tmp_path)
    expected = all_depths(model, ids)
    assert (expected - all_depths(base, ids)).abs().amax(dim=(1, 2, 3)).min() > 0.1
    again = copy.deepcopy(base)
    add_adapter(again, lora, token_ids=ROWS, new=NEW, frozen=False)
    load_adapter_weights(again, tmp_path)
    torch.testing.assert_close(all_depths(again, ids), expected, rtol=0, atol=0)
    merged = merge_adapter(copy.deepcopy(base), tmp_path)
    assert type(merged) is type(base) and merged.state_dict().keys() == base.state_dict().keys()
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied == merged.config.tie_word_embeddings
    assert (all_depths(merged, ids) - expected).abs().max() < 1e-5 * expected.abs().max()  # in float32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_language_model_has_adapters_in_its_modules_only(family):
    base = make_model(2, **FAMILIES[family])
    model = adapted(base, frozen=True, token_ids=(), new=NEW)
    parts = parameter_parts(model)
    assert {parts[name] for name in trained(model)} == {"mtp"} and not model.trains_backbone
    whole = {name for name in trained(model) if "lora_" not in name}
    assert whole == {name.replace(".weight", ".modules_to_save.default.weight") for name in NEW}


def test_gradients_reach_every_part_of_an_adapter():
    base = make_model(2, tie_word_embeddings=False, mtp_coordinator_weight=1.0)
    model = adapted(base, new=[*NEW, *(f"mtp_coordinators.{module}.weight" for module in (0, 1))]).train()
    assert any(name.startswith("mtp_coordinators") for name in trained(model))
    ids = torch.arange(60, 100).reshape(2, 20)
    output = model(ids, labels=ids)
    assert model.trains_backbone and output.loss > output.mtp_losses.mean()  # the backbone's loss is part of it
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name
    rows = {name for name in trained(model) if "trainable_tokens_delta" in name}
    assert len(rows) == 2 and {parameter_parts(model)[name] for name in rows} == {"head"}


def test_a_tied_head_has_no_copy_of_its_own():
    with pytest.raises(ValueError, match="save 'lm_head' names no module; those that can be named: .*norm"):
        adapted(make_model(2, tie_word_embeddings=True), LoraSettings(save=("lm_head",)))
    model = adapted(make_model(2, tie_word_embeddings=False), LoraSettings(save=("lm_head",)))
    assert "lm_head.modules_to_save.default.weight" in trained(model)
    ids = torch.arange(60, 100).reshape(2, 20)
    model.train()(ids, labels=ids).loss.backward()
    assert model.lm_head.modules_to_save.default.weight.grad.abs().sum() > 0


def test_the_projector_has_an_adapter_and_the_encoder_has_none():
    model = adapted(make_plus_model(2)).train()
    assert any("audio_projection.mlp.0.lora_A" in name for name in trained(model))
    assert not any("audio_model" in name for name in trained(model))
    ids = torch.arange(60, 100)[None]
    audios, places = random_audios(4), torch.stack([torch.zeros(8).long(), torch.arange(8)])[:, None]
    loss = model(ids, labels=ids, audios=audios, audio_indices=[places]).loss
    loss.backward()
    assert model.model.audio_projection.mlp[0].lora_B.default.weight.grad.abs().sum() > 0


def save_adapter(model, base, folder):
    """Write an adapter on the model in the folder `base`, as training does."""
    model.save_pretrained(folder)
    save_whole_config(model.config, describe_base(base), folder)


def grow(base, num_modules, vocab_size):
    """Return a copy of a model with more modules and more tokens."""
    model, missing = share_weights(base, make_model(num_modules, **tying(base)).config, "more modules")
    init_missing_mtp(model, missing)
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return copy.deepcopy(model)


def tying(model):
    return {"tie_word_embeddings": model.config.tie_word_embeddings}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_several_adapters_share_a_base(tied, tmp_path):
    plain, ids = make_model(2, tie_word_embeddings=tied), torch.arange(60, 100).reshape(2, 20)
    plain.save_pretrained(tmp_path / "base")
    added = ["mtp_projs.2.weight", "mtp_embed_norms.2.weight", "mtp_hidden_norms.2.weight"]
    trained_models = {
        "rows": adapted(plain, seed=1),
        "whole": adapted(plain, LoraSettings(r=2, dora=True, save=("norm", "mtp_hidden_norms")), token_ids=(), seed=2),
        "grown": adapted(grow(plain, 3, 110), token_ids=range(90, 110), new=added, seed=3),
    }
    base, _ = load_language_model(tmp_path / "base", plain.config)
    models, memory = {}, {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    for name, model in trained_models.items():
        save_adapter(model, tmp_path / "base", tmp_path / name)
        models[name], missing = load_on_base(tmp_path / name, model.config, base)
        assert not missing
    for name in ("rows", "whole", "grown", "rows"):
        merged, _ = load_language_model(tmp_path / name, trained_models[name].config)
        expected = all_depths(merged, ids)
        assert (all_depths(models[name], ids) - expected).abs().max() < 1e-5 * expected.abs().max()  # in float32
    assert torch.equal(all_depths(base, ids), all_depths(plain, ids))
    own = {
        name: {key for key, value in model.named_parameters() if value.untyped_storage().data_ptr() not in memory}
        for name, model in models.items()
    }
    tables = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert {key for key in own["rows"] if "lora_" not in key} == tables
    assert {key for key in own["whole"] if "lora_" not in key} == {
        *("model.norm.weight", "mtp_hidden_norms.0.weight", "mtp_hidden_norms.1.weight")
    }
    layer = "model.layers.4."  # of the module that the base lacks
    assert {key for key in own["grown"] if "lora_" not in key and not key.startswith(layer)} == {*tables, *added}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_checkpoints_leave_out_the_base(tied, tmp_path):
    model = adapted(make_model(2, tie_word_embeddings=tied), new=NEW)
    model.save_pretrained(tmp_path / "before")
    leave_out_base(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert state.keys() == {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    model.save_pretrained(tmp_path / "after")
    for parameter in model.parameters():
        parameter.add_(1 if parameter.requires_grad else 0)
    model.load_state_dict(state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(state | {"other": torch.zeros(1)})
    saved = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after")]
    torch.testing.assert_close(*saved, rtol=0, atol=0)


@pytest.fixture(scope="module")
def adapter(toy_folders, tmp_path_factory):
    return save_toy_adapter(toy_folders, tmp_path_factory.mktemp("adapter"))


def test_a_model_is_loaded_with_an_adapter(toy_folders, adapter):
    plain = load_toy(toy_folders)
    conversation = make_conversation("tts", text="four seven one")

    def codes(name, **options):
        speech_lm = SpeechLM.from_pretrained(name, plain.audio_tokenizer, device="cpu", **options)
        return speech_lm.respond(conversation, max_new_tokens=24, decode_audio=False).codes

    changed = codes(adapter)
    assert changed == codes(toy_folders.model, adapter=adapter) != codes(toy_folders.model)


def test_an_adapter_is_inspected(toy_folders, adapter, tmp_path):
    report = inspect_checkpoint(adapter)
    assert report.problems == [] and report.facts["adapter on"] == str(toy_folders.model.resolve())
    shutil.copytree(adapter, tmp_path / "lost")
    (tmp_path / "lost" / "adapter_base.json").write_text('{"base": "nowhere/to/be/found"}')
    [problem] = inspect_checkpoint(tmp_path / "lost").problems
    assert "is an adapter whose base is missing" in problem


def test_programs_take_an_adapter(toy_folders, adapter, capsys, tmp_path):
    flags = ["--task", "text", "--text", "four", "--max-new-tokens", "4", "--device", "cpu"]
    flags += ["--audio-tokenizer-path", str(toy_folders.audio_tokenizer)]
    answer(["--model", str(toy_folders.model), "--adapter", str(adapter), *flags])
    with pytest.raises(SystemExit) as stop:
        answer(["--model", str(adapter), "--adapter", str(toy_folders.model), *flags])
    assert stop.value.code == 2 and "holds no adapter" in capsys.readouterr().err

"""Stages that train an adapter: what they write, what they change, and how they resume."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from toy_run import ROOT, logged, make_merged_model
from transformers import AutoModelForCausalLM

from tools.export_checkpoint import main as export
from tools.finetune_sts import main as train
from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.adapters import fingerprint, load_language_model
from vita_audio.models.loading import read_config
from vita_audio.models.surgery import MODULE_PARTS
from vita_audio.training.lora import LoraSettings, parse_lora
from vita_audio.training.memory import empty_model
from vita_audio.training.stage_adapter import add_adapter

NUM_TEXT_TOKENS = 736
LORA = {"lora": "r=4,alpha=8"}
OF_MODULES = (*(f"{part}." for part in MODULE_PARTS), "model.layers.2.", "model.layers.3.")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def load(folder, **options):
    return load_language_model(folder, read_config(folder, SPEECH_CONFIGS), **options)[0].eval()


def weights(folder, **options):
    return load(folder, **options).state_dict()


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request, toy_run, tmp_path_factory):
    """A text model, with one table for embeddings and head, or with two."""
    if request.param == "tied":
        return toy_run.text_model
    folder = tmp_path_factory.mktemp("untied") / "base"
    make_merged_model(toy_run, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


@pytest.fixture(scope="module")
def stages(base, toy_run, tmp_path_factory):
    """Stages 1, 3 and 4, each an adapter on the one before."""
    folder = tmp_path_factory.mktemp("adapters")
    tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    config = toy_run.config(2, tie_word_embeddings=tied)
    changes = [
        {"extract_codes": True},
        {"config_name": config, "language_model_freeze": True},
        {"config_name": config, "mtp_model_lr_mult": 10},
    ]
    start = base
    for number, change in enumerate(changes, start=1):
        flags = {"learning_rate": 1e-2, "max_steps": 2, "model_name_or_path": start}
        train(toy_run.flags(folder / str(number), **flags, **LORA, **change))
        start = folder / str(number)
    return [folder / str(number) for number in range(1, 4)]


def test_a_stage_writes_an_adapter_and_no_weights_of_its_base(stages, base):
    for folder, start in zip(stages, [base, *stages], strict=False):
        described = json.loads((folder / "adapter_base.json").read_text())
        assert described == {"base": str(start.resolve()), "fingerprint": fingerprint(start)}
        assert not (folder / "model.safetensors").exists()
        names = load_file(folder / "adapter_model.safetensors")
        assert not any(name.endswith(TABLES) for name in names)
        assert all(loss > 0 for loss in logged(folder))


def test_it_changes_what_it_should_and_nothing_else(stages, base):
    text = AutoModelForCausalLM.from_pretrained(base).state_dict()
    first, second, third = map(weights, stages)
    is_adapted = {name for name in third if "_proj" in name and name.endswith(".weight")}
    for name, value in text.items():
        kept = slice(NUM_TEXT_TOKENS if name in TABLES else None)
        assert torch.equal(first[name][kept], value[kept]) == (name not in is_adapted), name
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    for name, value in second.items():
        if name in TABLES:
            changes = (third[name] - value).abs().amax(dim=1)
            assert (changes[:NUM_TEXT_TOKENS] == 0).all() and (changes[NUM_TEXT_TOKENS:] > 0).any(), name
        else:
            assert torch.equal(third[name], value) == (name not in is_adapted), name


def test_new_modules_are_in_the_adapter(stages):
    saved = load_file(stages[1] / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.") for name in saved}
    assert all(name.startswith(OF_MODULES) for name in names)
    assert {f"{part}.{module}.weight" for part in MODULE_PARTS for module in (0, 1)} <= names
    output = load(stages[2]).generate(
        torch.arange(10)[None], do_sample=False, max_new_tokens=14, return_dict_in_generate=True
    )
    assert set(output.steps) == {0, 1, 2}


def test_a_merged_model_is_the_same_model(stages, tmp_path, capsys):
    export([str(stages[2]), str(tmp_path / "merged"), "--merge"])
    model, ids = load(stages[2]), torch.arange(20)[None]
    assert (tmp_path / "merged" / "model.safetensors").exists()
    config = read_config(tmp_path / "merged", SPEECH_CONFIGS)
    assert config.tie_word_embeddings == model.config.tie_word_embeddings
    torch.testing.assert_close(load(tmp_path / "merged")(ids).logits, model(ids).logits, rtol=0, atol=0)
    with pytest.raises(SystemExit):
        export([str(stages[2]), str(tmp_path / "public")])
    assert "is an adapter, which the public code cannot load" in capsys.readouterr().err


def test_a_run_resumes_where_it_stopped(base, stages, toy_run, tmp_path):
    options = {**LORA, "model_name_or_path": base, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    for name, max_steps in (("straight", 3), ("resumed", 2)):
        train(toy_run.flags(tmp_path / name, **options, max_steps=max_steps, lr_scheduler_type="constant"))
    (tmp_path / "resumed" / "train_results.json").unlink()
    train(toy_run.flags(tmp_path / "resumed", **options, max_steps=3, lr_scheduler_type="constant"))
    assert logged(tmp_path / "resumed") == pytest.approx(logged(tmp_path / "straight"), rel=1e-5)
    checkpoint = tmp_path / "resumed" / "checkpoint-3"
    assert (checkpoint / "adapter_base.json").exists() and not (checkpoint / "model.safetensors").exists()
    result = weights(tmp_path / "straight")
    for name, value in weights(checkpoint).items():
        torch.testing.assert_close(value, result[name], rtol=1e-5, atol=1e-6)


def test_the_base_must_be_the_one_of_training(stages, base, tmp_path):
    shutil.copytree(stages[0], tmp_path / "adapter")
    assert weights(tmp_path / "adapter", base=base).keys() == weights(stages[0]).keys()
    other = AutoModelForCausalLM.from_pretrained(base)
    other.model.norm.weight.data += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is an adapter of another base: it was trained on .* got .*other"):
        load(stages[0], base=tmp_path / "other")
    (tmp_path / "adapter" / "adapter_base.json").write_text(json.dumps({"base": str(tmp_path / "gone")}))
    with pytest.raises(FileNotFoundError, match="is an adapter whose base is missing: no folder .*--adapter"):
        load(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_base.json").unlink()
    with pytest.raises(FileNotFoundError, match="does not name its base; give --model BASE --adapter"):
        load(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds no adapter: adapter_config.json is missing"):
        load_language_model(tmp_path / "other", other.config, base=base)


def test_a_base_in_four_bits(base, toy_run, tmp_path):
    """Its adapter is one on the base in full precision, learned with the errors of 4 bits."""
    pytest.importorskip("bitsandbytes")
    flags = {"model_name_or_path": base, "learning_rate": 1e-2, "max_steps": 2, "extract_codes": True}
    for name, lora in (("whole", "r=4,alpha=8"), ("four", "r=4,alpha=8,qlora")):
        train(toy_run.flags(tmp_path / name, **flags, lora=lora))
    whole, four = (logged(tmp_path / name) for name in ("whole", "four"))
    assert four == pytest.approx(whole, rel=1e-2) and four != whole
    before, after = AutoModelForCausalLM.from_pretrained(base).state_dict(), weights(tmp_path / "four")
    for name, value in before.items():
        if name not in TABLES:
            assert torch.equal(after[name], value) == ("_proj" not in name or name.endswith("bias")), name
    assert "quantization_config" not in json.loads((tmp_path / "four" / "config.json").read_text())


def test_a_base_in_four_bits_must_be_whole(stages, toy_run, tmp_path, capsys, monkeypatch):
    def error(**changes):
        with pytest.raises(SystemExit) as stop:
            train(toy_run.flags(tmp_path, lora="qlora", extract_codes=True, overwrite_output_dir=True, **changes))
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "with qlora cannot start from an adapter" in error(model_name_or_path=stages[0])
    assert "needs a base with all MTP modules, " in error(config_name=toy_run.config(2))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "a base in 4 bits (--lora qlora) needs the package bitsandbytes" in error()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("targets=q_projj", "targets 'q_projj' names no module; those that can be named: down_proj, gate_proj"),
        ("save=nothing", "save 'nothing' names no module; those that can be named:"),
        ("rank=4", "'rank=4' is not one of r, alpha"),
        ("dora=1", "'dora=1' is not one of"),
        ("r=many", "r must be a number, got 'many'"),
        ("r=0", "r must be at least 1"),
    ],
)
def test_a_wrong_setting_is_one_line(toy_run, tmp_path, capsys, lora, message):
    with pytest.raises(SystemExit) as stop:
        train(toy_run.flags(tmp_path / "run", lora=lora, extract_codes=True, max_steps=1))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_settings_are_read_from_text():
    assert parse_lora("r=8,alpha=16,targets=q_proj+v_proj,save=norm,dora,rslora,dropout=0.1") == LoraSettings(
        8, 16.0, 0.1, ("q_proj", "v_proj"), ("norm",), True, True
    )
    assert parse_lora("") == LoraSettings()


@pytest.mark.parametrize("frozen", [True, False])
def test_an_adapter_of_a_large_model_is_small(frozen):
    config = read_config(ROOT / "configs" / "models" / "qwen2_7b_mtp10.json", SPEECH_CONFIGS)
    model = empty_model(config, torch.bfloat16)
    total = sum(parameter.numel() for parameter in model.parameters())
    new = [f"{part}.{module}.weight" for part in MODULE_PARTS for module in range(10)] if frozen else []
    rows = () if frozen else range(151_665, config.vocab_size)
    with torch.device("meta"):
        add_adapter(model, LoraSettings(), token_ids=rows, new=new, frozen=frozen)
    assert 0 < sum(p.numel() for p in model.parameters() if p.requires_grad) < 0.05 * total

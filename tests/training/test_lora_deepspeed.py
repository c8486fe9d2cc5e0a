"""Adapters under DeepSpeed: the same adapter as without it, and runs that resume."""

import json

import pytest
from processes import run
from toy_run import ROOT, logged, make_merged_model

from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.adapters import load_language_model
from vita_audio.models.loading import read_config


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def weights(folder):
    return load_language_model(folder, read_config(folder, SPEECH_CONFIGS))[0].state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["r=4,alpha=8", "r=4,alpha=8,dora,save=norm"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_an_adapter_is_the_same_with_and_without_deepspeed(toy_run, tmp_path, config, tied, lora):
    base, log = toy_run.text_model, tmp_path / "log.txt"
    if not tied:
        base = tmp_path / "base"
        make_merged_model(toy_run, base)
        values = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": False}))

    def train(name, num_processes, **changes):
        flags = {"lora": lora, "model_name_or_path": base, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
        flags |= {"config_name": toy_run.config(2, tie_word_embeddings=tied), "ddp_backend": "gloo", "max_steps": 4}
        flags |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4 // num_processes}
        flags |= {"extract_codes": True, "save_strategy": "steps", "save_steps": 2}
        codes = run(toy_run.flags(tmp_path / name, **flags | changes), num_processes, log)
        assert codes == [0] * num_processes, log.read_text()[-4000:]

    train("plain", 1)
    deepspeed = {"deepspeed": ROOT / "scripts" / "deepspeed" / f"ds_config_{config}.json"}
    train("deepspeed", 2, **deepspeed, max_steps=2)
    (tmp_path / "deepspeed" / "train_results.json").unlink()
    train("deepspeed", 2, **deepspeed)
    assert logged(tmp_path / "deepspeed") == pytest.approx(logged(tmp_path / "plain"), rel=1e-3)
    assert not list((tmp_path / "deepspeed").rglob("model*.safetensors"))
    expected = weights(tmp_path / "plain")
    for name, value in weights(tmp_path / "deepspeed").items():
        # a step of Adam is 0.01 whatever the size of the gradient, so that single weights follow rounding errors
        assert (value - expected[name]).abs().mean() < 5e-4, name

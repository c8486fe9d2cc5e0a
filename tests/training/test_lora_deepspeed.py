"""Adapters under DeepSpeed: the same adapter as without it, and runs that resume from checkpoints without the base."""

import json

import pytest
import torch
from processes import run
from toy_run import ROOT, logged, make_merged_model

from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.adapters import load_language_model
from vita_audio.models.loading import read_config

LORAS = {"lora": "r=4,alpha=8", "dora": "r=4,alpha=8,dora,save=norm"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield


def weights(folder):
    return load_language_model(folder, read_config(folder, SPEECH_CONFIGS))[0].state_dict()


@pytest.fixture(scope="module", params=[(tied, lora) for tied in (True, False) for lora in LORAS], ids=str)
def train(request, toy_run, tmp_path_factory):
    """A function that trains an adapter in a new folder, on a base whose head is tied or not; returns the folder."""
    (tied, lora), folder = request.param, tmp_path_factory.mktemp("runs")
    base, log = toy_run.text_model, folder / "log.txt"
    if not tied:
        base = folder / "base"
        make_merged_model(toy_run, base)
        values = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": False}))

    def train(name, num_processes=1, **changes):
        flags = {"lora": LORAS[lora], "model_name_or_path": base, "learning_rate": 1e-2, "max_steps": 4}
        flags |= {"config_name": toy_run.config(2, tie_word_embeddings=tied), "lr_scheduler_type": "constant"}
        flags |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4 // num_processes}
        flags |= {"ddp_backend": "gloo", "extract_codes": True, "save_strategy": "steps", "save_steps": 2}
        codes = run(toy_run.flags(folder / name, **flags | changes), num_processes, log)
        assert codes == [0] * num_processes, log.read_text()[-4000:]
        return folder / name

    return train


@pytest.fixture(scope="module")
def plain(train):
    """The folders of a run without DeepSpeed, and of one that has changed nothing."""
    return train("plain"), train("untrained", max_steps=1, learning_rate=0)


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_an_adapter_is_the_same_with_and_without_deepspeed(train, plain, config):
    deepspeed = {"deepspeed": ROOT / "scripts" / "deepspeed" / f"ds_config_{config}.json"}
    folder = train(config, 2, **deepspeed, max_steps=2)
    for path in folder.rglob("*model_states.pt"):
        state = torch.load(path, weights_only=False)
        assert not any("base_layer" in name for name in state["module"]) and not state["frozen_param_fragments"]
    (folder / "train_results.json").unlink()
    train(config, 2, **deepspeed)
    assert logged(folder) == pytest.approx(logged(plain[0]), rel=1e-3)
    assert not list(folder.rglob("model*.safetensors"))
    expected, before = map(weights, plain)
    for name, value in weights(folder).items():
        difference, change = (value - expected[name]).norm(), (expected[name] - before[name]).norm()
        assert difference <= 1e-3 * change, name

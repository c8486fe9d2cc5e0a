"""Registering twice, other releases of vLLM, other checkpoints: nothing breaks, or one line says what is wrong."""

import json
import logging
import pickle
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="needs the environment of third_party/vllm_plugin/setup_env.sh")
import vita_audio_vllm
from models.toy_models import make_model, make_plus_model
from transformers import Qwen2Config
from vita_audio_vllm import speculation
from vita_audio_vllm.config import EngineConfig, PlusEngineConfig
from vllm import ModelRegistry
from vllm.config.speculative import SpeculativeConfig

ARCHITECTURES = ("Qwen2MTPForCausalLM", speculation.ARCHITECTURE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    make_model(3).save_pretrained(folder := tmp_path_factory.mktemp("model"))
    return folder


def registered():
    return {name: ModelRegistry.models.get(name) for name in ARCHITECTURES}


def test_registering_twice_is_registering_once():
    vita_audio_vllm.register()
    once, function = registered(), SpeculativeConfig.hf_config_override
    assert None not in once.values()
    vita_audio_vllm.register()
    assert registered() == once and SpeculativeConfig.hf_config_override is function
    plain = Qwen2Config(architectures=["Qwen2ForCausalLM"])
    assert SpeculativeConfig.hf_config_override(plain) is plain and plain.model_type == "qwen2"


def test_the_replaced_function_can_be_put_back():
    vita_audio_vllm.register()
    speculation.uninstall()
    assert SpeculativeConfig.hf_config_override.__module__ == "vllm.config.speculative"
    speculation.install()
    function = SpeculativeConfig.hf_config_override
    assert pickle.loads(pickle.dumps(function)) is function  # the engine sends it to its other processes


def test_a_configuration_has_the_layers_of_the_backbone(folder):
    config = EngineConfig.from_pretrained(folder)
    assert (config.num_hidden_layers, config.num_nextn_predict_layers, len(config.layer_types)) == (2, 3, 2)
    assert (config.checkpoint_head_dim, config.head_dim, config.rope_parameters["partial_rotary_factor"]) == (
        8,
        32,
        0.25,
    )
    draft = speculation.hf_config_override(EngineConfig.from_pretrained(folder))
    assert (draft.model_type, draft.architectures, draft.n_predict) == ("mtp", ["Qwen2MTPDrafts"], 3)


@pytest.mark.parametrize(
    "model, kind, message",
    [
        (make_model(0), EngineConfig, "the model has no MTP modules"),
        (make_plus_model(2), PlusEngineConfig, "a model with continuous input has no drafts in the engine"),
    ],
)
def test_models_without_drafts(tmp_path, model, kind, message):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        speculation.hf_config_override(kind.from_pretrained(tmp_path))
    check_one_line(message, tmp_path, "--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')


def check_one_line(message, *arguments):
    """Check that the server does not start, and says why in one line."""
    command = [sys.executable, "-m", "vita_audio_vllm", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and message in result.stderr


@pytest.mark.parametrize("found", [None, "0.33.1", "0.3.2"])
def test_another_release_registers_nothing_and_says_so(monkeypatch, caplog, found):
    monkeypatch.setattr(vita_audio_vllm, "engine_version", lambda: found)
    for name in ARCHITECTURES:
        ModelRegistry.models.pop(name, None)
    with caplog.at_level(logging.ERROR, logger="vita_audio_vllm"):
        vita_audio_vllm.register()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"vita-audio-vllm works with vLLM 0.32, got {found}; run third_party/")
    assert set(registered().values()) == {None}
    monkeypatch.undo()
    vita_audio_vllm.register()
    assert None not in registered().values()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "qwen2"}, "config.json: model_type must be qwen2_mtp or qwen2_mtp_sensevoice, got qwen2"),
        ({"num_nextn_predict_layers": 5}, "config.json: num_hidden_layers counts backbone layers and MTP modules"),
        ({"use_sliding_window": True}, "config.json: use_sliding_window must be false"),
        (None, "no config.json in "),
    ],
)
def test_a_wrong_checkpoint_gets_one_line(folder, tmp_path, changes, message):
    if changes is not None:
        fields = json.loads((folder / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(fields))
    check_one_line(message, tmp_path)

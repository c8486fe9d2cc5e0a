"""Gradients are clipped as --max_grad_norm says, with and without DeepSpeed, whose own default is 1.0."""

import copy
import json

import pytest
import torch
from processes import run
from safetensors.torch import load_file
from test_survival import flags_of
from toy_run import ROOT, logged

from vita_audio.training.trainer import complete_deepspeed_config

CONFIGS = sorted((ROOT / "scripts" / "deepspeed").glob("ds_config_*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_leave_clipping_to_the_flag(path):
    assert json.loads(path.read_text(encoding="utf-8"))["gradient_clipping"] == "auto"


@pytest.mark.parametrize("config", [{}, {"bf16": {"enabled": "auto"}}])
def test_a_silent_configuration_is_completed(config):
    complete_deepspeed_config(config, 0.5, bf16=True)
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"]["enabled"] and config["bf16"]["check_grad_overflow"] is True


def test_what_a_configuration_says_is_kept():
    config = {"gradient_clipping": "auto", "bf16": {"enabled": True, "check_grad_overflow": False}}
    complete_deepspeed_config(completed := copy.deepcopy(config), 0.5, bf16=True)
    assert completed == config
    complete_deepspeed_config(plain := {}, 0.5, bf16=False)
    assert plain == {"gradient_clipping": 0.5}


@pytest.mark.parametrize("max_grad_norm", [0.01, pytest.param(0.0, marks=pytest.mark.slow)])
def test_deepspeed_with_a_silent_configuration_clips_like_a_plain_run(toy_run, tmp_path, monkeypatch, max_grad_norm):
    """With plain gradient descent, the weights show the length of the gradient, which is above 1 here."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    silent = tmp_path / "silent.json"
    values = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}
    silent.write_text(json.dumps(values | {"zero_allow_untested_optimizer": True}))
    changes = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": max_grad_norm}
    changes |= {"gradient_accumulation_steps": 1, "max_steps": 2, "save_strategy": "no", "audio_code_noise": 0.0}
    changes |= {"config_name": toy_run.config(2)}
    for name, options in (("plain", {}), ("deepspeed", {"deepspeed": silent})):
        log = tmp_path / f"{name}.txt"
        flags = flags_of(toy_run, tmp_path, tmp_path / name, "none", 1, **changes | options)
        assert run(flags, 1, log) == [0], log.read_text()[-4000:]
    assert min(logged(tmp_path / "plain", "grad_norm")) > 1
    assert logged(tmp_path / "deepspeed", "grad_norm") == pytest.approx(
        logged(tmp_path / "plain", "grad_norm"), rel=1e-5
    )
    plain, deepspeed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "deepspeed"))
    for name, value in plain.items():
        torch.testing.assert_close(deepspeed[name], value, rtol=1e-5, atol=1e-6)

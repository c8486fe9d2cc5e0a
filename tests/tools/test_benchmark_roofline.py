"""The benchmark of memory bandwidth, on a CPU with a tiny model."""

import json

import pytest
import torch
from transformers import AutoConfig

from tools import benchmark_roofline
from tools.common import roofline


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2_mtp", **roofline.CHECK_CONFIG}))
    return path


def test_all_modes_are_measured(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(roofline.memory_bandwidth, "__defaults__", (2**20,))
    sizes = ["--new-tokens", "30", "--repeats", "1", "--dtype", "float32", "--device", "cpu"]
    benchmark_roofline.main(["--config", str(config), "--output", str(tmp_path / "out"), *sizes])
    report = json.loads((tmp_path / "out" / "roofline.json").read_text())
    assert list(report["modes"]) == ["vanilla", "boost", "turbo"] and report["bandwidth_gb_per_second"] > 0
    for mode, metrics in report["modes"].items():
        assert min(metrics[name] for name in ("tokens_per_second", "backbone_ms", "bandwidth_share")) > 0
        assert (metrics["module_ms"] is None) == (mode == "vanilla")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[-3:]] == ["| vanilla", "| boost", "| turbo"]


def test_weights_of_a_step():
    """All modules and the backbone together are the model, its head and last norm read by each of them."""
    model = roofline.make_model(AutoConfig.for_model("qwen2_mtp", **roofline.CHECK_CONFIG), "cpu", torch.bfloat16)
    backbone, module = roofline.weight_bytes(model)
    num_modules = model.config.num_nextn_predict_layers
    shared = model.lm_head.weight.nbytes + model.model.norm.weight.nbytes
    embeddings = model.model.embed_tokens.weight.nbytes
    assert backbone + num_modules * (module - shared) == 2 * model.num_parameters() - embeddings
    assert num_modules == 4 and module < backbone


def test_other_tokens_are_an_error(monkeypatch):
    answers = iter(range(100))
    monkeypatch.setattr(roofline, "decode", lambda *arguments, **options: [(next(answers), 0, 0.0)])
    with pytest.raises(RuntimeError, match="cpu does not decode the tokens of the CPU"):
        roofline.check_ids("cpu")

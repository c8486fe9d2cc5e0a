"""The benchmark of training steps, on a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import benchmark_training
from tools.common.training_step import (
    FROZEN,
    MIB,
    TRAINABLE,
    Settings,
    make_batch,
    make_model,
    measure,
    model_flops,
)

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 2,
    "vocab_size": 512,
}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2_mtp", **TINY}))
    return path


def test_two_checkouts_side_by_side(tmp_path, config, capfd):
    flags = ["--config", config, "--compare-with", ROOT, "--tokens", 32, "--steps", 1, "--train", "frozen", "--profile"]
    benchmark_training.main([*map(str, flags), "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "training_speed.json").read_text())
    this, other = report["steps"]["frozen"].values()
    assert this["loss"] == other["loss"] and len(this["operations"]) == 10
    lines = (tmp_path / "out" / "training_speed.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["this checkout", ROOT.name, "ratio"]
    assert "aten::" in "".join(lines[5:]) and lines[0] in capfd.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_by_component(dtype):
    settings = {"config": TINY, "tokens": 32, "steps": 1, "optimizer": True, "dtype": dtype}
    frozen, trainable = (measure(Settings(step=step, **settings)) for step in (FROZEN, TRAINABLE))
    for metrics in (frozen, trainable):
        assert min(metrics.seconds, metrics.tokens_per_second, metrics.mfu) > 0
        assert metrics.optimizer == pytest.approx(2 * metrics.gradients, rel=0.01)  # two moments, and counters
    num_parameters = sum(parameter.numel() for parameter in make_model(Settings(TINY)).parameters())
    size = num_parameters * (4 if dtype == "float32" else 2) / MIB
    assert frozen.weights == trainable.weights == trainable.gradients == pytest.approx(size)
    assert frozen.gradients < trainable.gradients


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_that_of_memory_that_was_freed_again():
    """In a new process, as the program measures: an old one may have free memory that it uses first."""
    code = "import torch; from tools.common.training_step import PeakMemory; memory = PeakMemory('cpu'); "
    code += "torch.ones(2**24).sum(); print(memory.read())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(result.stdout) == pytest.approx(64, abs=8)


def test_help_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from tools.benchmark_training import main; main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0 and "--compare-with" in result.stdout


@pytest.mark.parametrize("flags", ["--tokens 0", "--config none.json", "--compare-with nowhere"])
def test_wrong_arguments(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark_training.main(["--output", "out", *flags.split()])
    assert ended.value.code == 2 and flags.split()[1] in capsys.readouterr().err


def test_packs_restart_and_mask_the_start_of_each_document():
    batch = make_batch(Settings(TINY, rows=2, tokens=10, documents=2, masked=0.4), 512)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]] * 2
    assert ((batch["labels"] == -100).sum(1) == 4).all() and batch["labels"][0, 2] == batch["input_ids"][0, 2]


def test_flops_are_those_of_matrix_products_and_attention():
    model = make_model(Settings(TINY))
    layers = 64 * sum(each.numel() for name, each in model.named_parameters() if "layers" in name and each.ndim == 2)
    scores = 4 * 64 * 32.5 * 32 * 2  # layers, queries, keys that a query sees, hidden size, scores and values
    projections = 64 * sum(each.numel() for each in model.mtp_projs.parameters())
    targets = [32, 31, 30]
    expected = 6 * (layers + scores + projections + 512 * 32 * sum(targets))
    assert model_flops(model.config, Settings(TINY, tokens=64), targets) == pytest.approx(expected, rel=0.01)
    frozen = (2 + 6) / 2 * (layers + scores) + 6 * projections + 4 * 512 * 32 * sum(targets[1:])
    assert model_flops(model.config, Settings(TINY, FROZEN, tokens=64), targets) == pytest.approx(frozen, rel=0.01)

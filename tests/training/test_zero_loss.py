"""The fused loss under ZeRO: processes with different numbers of targets, one of them with none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "zero_worker.py"


def train(folder, stage, kind, num_processes):
    """Run the worker; return what every process wrote and the weights after training."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command += [str(WORKER), str(folder), str(stage), kind]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    results = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_processes)]
    return results, load_file(folder / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["all", "frozen"])
def test_processes_with_unequal_targets_train_as_one(tmp_path, kind):
    (one,), expected = train(tmp_path / "one", 0, kind, num_processes=1)
    assert len(set(one["losses"])) == len(one["losses"]) > 1
    for stage in (0, 3):
        results, weights = train(tmp_path / f"zero{stage}", stage, kind, num_processes=2)
        for result in results:
            assert result["losses"] == pytest.approx(one["losses"], rel=1e-5)
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert all(result["head_gathers"][1:] == [1, 1] for result in results)  # DeepSpeed learns the order in step one


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["aligned", "coordinated"])
def test_other_losses_train_alike_with_partitioned_weights(tmp_path, kind):
    """In one step, one of the two processes has no document to align, or no target."""
    (plain, expected), (zero3, weights) = (
        train(tmp_path / f"zero{stage}", stage, kind, num_processes=2) for stage in (0, 3)
    )
    for one, other in zip(plain, zero3, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)

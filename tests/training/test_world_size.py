"""Runs that resume on another number of processes."""

import shutil

import pytest
import torch
from processes import run
from safetensors.torch import load_file
from test_survival import flags_of
from toy_run import logged

from vita_audio.training.run_folder import RESULTS_FILE
from vita_audio.training.world_size import needs_universal


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def train(toy_run, folder, config, num_processes, log):
    """Train four steps, each part at its own rate, without random numbers, which every process draws for itself."""
    changes = {"config_name": toy_run.config(2), "audio_code_noise": 0.0, "max_steps": 4, "save_steps": 2}
    changes |= {"mtp_model_lr_mult": 3, "weight_decay": 0.1}
    return run(flags_of(toy_run, log.parent, folder, config, num_processes, **changes), num_processes, log)


def interrupt(straight, folder):
    """Copy a finished run as if it had been killed after its first checkpoint."""
    shutil.copytree(straight, folder)
    (folder / RESULTS_FILE).unlink()
    shutil.rmtree(folder / "checkpoint-4")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["none", "zero2", "zero3"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_continues_on_another_number_of_processes(toy_run, tmp_path, config, before, after):
    log = tmp_path / "log.txt"
    assert train(toy_run, tmp_path / "straight", config, before, log) == [0] * before, log.read_text()[-4000:]
    interrupt(tmp_path / "straight", tmp_path / "changed")
    assert train(toy_run, tmp_path / "changed", config, after, log) == [0] * after, log.read_text()[-4000:]
    assert "resuming from" in log.read_text()
    assert logged(tmp_path / "changed") == pytest.approx(logged(tmp_path / "straight"), rel=1e-6)
    changed, straight = (load_file(tmp_path / name / "model.safetensors") for name in ("changed", "straight"))
    torch.testing.assert_close(changed, straight)


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path):
    assert not needs_universal(tmp_path, 2, zero3=None)
    with pytest.raises(ValueError, match="written without DeepSpeed, leave out --deepspeed"):
        needs_universal(tmp_path, 2, zero3=False)
    (tmp_path / "latest").write_text("global_step3")
    with pytest.raises(ValueError, match="written with DeepSpeed, give --deepspeed"):
        needs_universal(tmp_path, 2, zero3=None)


def test_zero3_and_the_others_have_checkpoints_of_their_own(tmp_path):
    (tmp_path / "latest").write_text("step")
    (tmp_path / "step").mkdir()
    for rank in range(2):
        (tmp_path / "step" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    assert [needs_universal(tmp_path, number, zero3=False) for number in (1, 2)] == [True, False]
    with pytest.raises(ValueError, match="written without ZeRO-3, give another configuration"):
        needs_universal(tmp_path, 2, zero3=True)
    (tmp_path / "step" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    assert [needs_universal(tmp_path, number, zero3=True) for number in (1, 2)] == [True, False]
    with pytest.raises(ValueError, match="written with ZeRO-3, give a ZeRO-3 configuration"):
        needs_universal(tmp_path, 2, zero3=False)

"""Runs that are killed at any moment end as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time

import pytest
import torch
from processes import run
from safetensors.torch import load_file
from toy_run import ROOT, logged

from vita_audio.training.run_folder import RESULTS_FILE, last_checkpoint

CONFIGS = ("none", "zero2", "zero3")
MOMENTS = {  # file in the folder of the test that shows that the moment has come
    "extraction": "codes/*.sqlite-journal",
    "packing": "packs/.packs-*.partial",
    "step": "run/checkpoint-*",
    "save": "run/.checkpoint-*.partial/*/*",
}


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def flags_of(toy_run, folder, output_dir, config, num_processes, **changes):
    flags = {
        "config_name": toy_run.config(2, attention_dropout=0.1),
        "audio_code_dir": folder / "codes",
        "pack_cache_dir": folder / "packs",
        "extract_codes": True,
        "audio_code_noise": 0.1,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4 // num_processes,
        "ddp_backend": "gloo",
    }
    if config != "none":
        flags["deepspeed"] = ROOT / "scripts" / "deepspeed" / f"ds_config_{config}.json"
    return toy_run.flags(output_dir, **flags | changes)


class Moment:
    """A random time after the first new file of a kind is there; `has_come()` is true from then on."""

    def __init__(self, kind, folder, rng):
        self.kind, self.folder = kind, folder
        self.known = self.paths()
        self.delay = rng.uniform(0, 0.3 if kind == "step" else 0.02)
        self.time = None

    def paths(self):
        return set(self.folder.glob(MOMENTS[self.kind]))

    def has_come(self):
        if self.time is None and self.paths() - self.known:
            self.time = time.monotonic() + self.delay
        return self.time is not None and time.monotonic() >= self.time


def check_survival(toy_run, folder, config, num_processes, kinds, seed) -> None:
    """Train once without and once with interruptions, and compare; every checkpoint in between must be complete."""
    straight, killed = folder / "straight", folder / "run"
    log = folder / "log.txt"
    flags = flags_of(toy_run, folder / "whole", straight, config, num_processes, curriculum_length=64)
    assert run(flags, num_processes, log) == [0] * num_processes, log.read_text()[-4000:]
    flags = flags_of(toy_run, folder, killed, config, num_processes, curriculum_length=64)
    rng = random.Random(seed)
    for kind in kinds:
        codes = run(flags, num_processes, log, kill_when=Moment(kind, folder, rng).has_come)
        assert set(codes) == {-signal.SIGKILL}, f"{kind}: {codes} {log.read_text()[-4000:]}"
        for checkpoint in killed.glob("checkpoint-*"):
            names, expected = (
                {path.relative_to(root).as_posix().replace(f"global_step{step}", "") for path in root.rglob("*")}
                for root, step in ((checkpoint, checkpoint.name.split("-")[1]), (straight / "checkpoint-6", 6))
            )
            assert names == expected
    assert not (killed / RESULTS_FILE).exists()
    assert run(flags, num_processes, log) == [0] * num_processes, log.read_text()[-4000:]
    assert sorted(path.name for path in killed.glob("*checkpoint*")) == ["checkpoint-5", "checkpoint-6"]
    assert last_checkpoint(killed).name == "checkpoint-6"
    for key in ("loss", "mtp_1_loss", "grad_norm", "learning_rate", "num_tokens"):
        assert logged(killed, key) == logged(straight, key), key
    for name, value in load_file(straight / "model.safetensors").items():
        assert torch.equal(load_file(killed / "model.safetensors")[name], value), name


def test_a_run_survives(toy_run, tmp_path):
    check_survival(toy_run, tmp_path, "none", 1, ("packing", "save", "step"), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_kind_of_run_survives(toy_run, tmp_path, config, num_processes):
    seed = 10 * num_processes + CONFIGS.index(config)
    kinds = (("extraction", "packing")[seed % 2], "save", "step") if config != "none" else tuple(MOMENTS)
    check_survival(toy_run, tmp_path, config, num_processes, kinds, seed)

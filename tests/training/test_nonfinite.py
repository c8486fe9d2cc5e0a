"""A loss that is not finite changes nothing, is reported with its samples, and ends the run unless told to skip."""

import copy
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from models.toy_models import make_model
from processes import run
from safetensors.torch import load_file
from test_survival import CONFIGS, flags_of
from toy_run import logged
from transformers.trainer_callback import TrainerCallback

from vita_audio.data.collator import PackCollator
from vita_audio.errors import RunError, one_line_run_errors
from vita_audio.training.nonfinite import MAX_SKIPPED, NonfiniteGuard
from vita_audio.training.report import write_report
from vita_audio.training.run_folder import NONFINITE_FILE, last_checkpoint
from vita_audio.training.trainer import SpeechTrainer, SpeechTrainingArguments


class StepWeights(TrainerCallback):
    """Copies of the weights before training and after each step."""

    def __init__(self, model):
        self.copies = [copy.deepcopy(model.state_dict())]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.copies.append(copy.deepcopy(model.state_dict()))

    def changed(self):
        """Return the steps that changed something."""
        return [
            step
            for step, (before, after) in enumerate(zip(self.copies[:-1], self.copies[1:], strict=True), start=1)
            if any(not torch.equal(before[name], after[name]) for name in before)
        ]


def make_trainer(folder, weights, **arguments):
    """Make a trainer of packs with these loss weights, in their order, two a step, and its StepWeights."""
    rows = [
        {"input_ids": ids, "labels": ids, "position_ids": list(range(16)), "sources": [0], "lines": [line]}
        | {"loss_weights": [weight] * 16}
        for line, weight in enumerate(weights, start=1)
        for ids in [torch.randint(0, 100, (16,), generator=torch.Generator().manual_seed(line)).tolist()]
    ]
    model = make_model(1)
    values = {"learning_rate": 1e-3, "weight_decay": 0.1, "lr_scheduler_type": "constant", "logging_steps": 1}
    values |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "max_steps": len(weights) // 2}
    values |= {"train_sampling_strategy": "sequential", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    trainer = SpeechTrainer(
        model=model,
        args=SpeechTrainingArguments(output_dir=str(folder), **values | arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=PackCollator(pad_id=0, files=["a.jsonl"]),
    )
    steps = StepWeights(model)
    trainer.add_callback(steps)
    return trainer, steps


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e4])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_skipped_step_leaves_the_weights_alone(tmp_path, weight, max_grad_norm, caplog):
    trainer, steps = make_trainer(tmp_path, [1, 1, 1, weight, 1, 1], on_nonfinite="skip", max_grad_norm=max_grad_norm)
    trainer.train()
    assert steps.changed() == [1, 3]
    (row,) = map(json.loads, (tmp_path / NONFINITE_FILE).read_text(encoding="utf-8").splitlines())
    assert (row["step"], row["process"], row["samples"]) == (2, 0, ["a.jsonl:4"])
    assert not float(row["loss"]) <= 100
    assert "step 2 has a gradient that is not finite, or too high a loss" in caplog.text and "a.jsonl:4" in caplog.text
    assert all(entry["main_loss"] < 100 for entry in trainer.state.log_history if "main_loss" in entry)


def test_the_run_stops_with_the_weights_before_the_step(tmp_path):
    trainer, steps = make_trainer(tmp_path, [1, 1, 1, float("nan"), 1, 1])
    with pytest.raises(RunError, match=r"^step 2 .*: nan in process 0; samples a.jsonl:4, .*--on_nonfinite skip"):
        trainer.train()
    assert steps.changed() == [1]
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in steps.copies[-1].items())


def test_a_gradient_that_is_not_finite_counts_too(tmp_path):
    trainer, _ = make_trainer(tmp_path, [1, 1])
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RunError, match=r"samples a.jsonl:1, a.jsonl:2, all in"):
        trainer.train()


def test_a_run_in_which_every_step_is_skipped_stops(tmp_path):
    trainer, steps = make_trainer(tmp_path, [float("nan")] * 30, on_nonfinite="skip")
    with pytest.raises(RunError, match=f"^step {MAX_SKIPPED} .*; {MAX_SKIPPED} steps in a row were skipped"):
        trainer.train()
    assert not steps.changed()
    entries = trainer.state.log_history
    assert len(entries) == MAX_SKIPPED - 1 and {entry["num_tokens"] for entry in entries} == {32}
    assert not any("main_loss" in entry or "mtp_0_loss" in entry for entry in entries)
    write_report(tmp_path, entries)  # as during the run


def test_an_overflow_in_float16_is_left_to_the_loss_scaler(tmp_path):
    guard = NonfiniteGuard(tmp_path, 0, max_loss=100, skip=True, scales_loss=True)
    for step, loss in enumerate((2.0, float("nan"), 2.0), start=1):
        guard.watch(torch.tensor(1.0), torch.tensor(loss), [f"a.jsonl:{step}"])
        assert guard.accepts(step, float("inf")) is (loss == 2.0)
    (row,) = map(json.loads, (tmp_path / NONFINITE_FILE).read_text(encoding="utf-8").splitlines())
    assert row["samples"] == ["a.jsonl:2"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this full disk")
def test_a_full_disk_ends_the_run_in_one_line(tmp_path, capsys):
    (tmp_path / NONFINITE_FILE).symlink_to("/dev/full")
    trainer, _ = make_trainer(tmp_path, [float("nan"), 1], on_nonfinite="skip")
    with pytest.raises(SystemExit) as stop, one_line_run_errors("program"):
        trainer.train()
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 1
    assert last == "program: [Errno 28] No space left on device; make room, then run the same command to continue"


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_every_kind_of_run_skips_the_same_steps(toy_run, tmp_path, config, monkeypatch):
    """Two processes; packs with user audio have a loss that is infinite."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    changes = {"user_audio_loss_weight": 1e30, "gradient_accumulation_steps": 1, "model_max_length": 96}
    logs = {}
    for on_nonfinite, code in (("skip", 0), ("stop", 1)):
        folder, log = tmp_path / on_nonfinite, tmp_path / f"{on_nonfinite}.txt"
        flags = flags_of(toy_run, tmp_path, folder, config, 2, on_nonfinite=on_nonfinite, **changes)
        assert run(flags, 2, log) == [code] * 2, log.read_text()[-4000:]
        logs[folder] = [json.loads(line) for line in (folder / NONFINITE_FILE).read_text().splitlines()]
    skipped, stopped = logs.values()
    first = skipped[0]["step"]
    assert {row["step"] for row in stopped} == {first} and {row["step"] for row in skipped} < set(range(1, 7))
    lines = toy_run.data.with_name("data.jsonl").read_text().splitlines()
    for row in skipped:
        samples = [json.loads(lines[int(sample.split(":")[1]) - 1]) for sample in row["samples"]]
        assert any("<|audio|>" in sample["messages"][0]["content"] for sample in samples)
    last = last_checkpoint(tmp_path / "stop")
    assert last is None if first == 1 else last.name == f"checkpoint-{first - 1}"
    weights = load_file(tmp_path / "skip" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert all(loss < 100 for loss in logged(tmp_path / "skip"))

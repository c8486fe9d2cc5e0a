"""The loop of the codec's training: a resumed run equals a straight one, averages, what happens at checkpoints."""

import argparse
import json
import math

import pytest
import torch
from torch import nn

from tools.common.loop_options import add_loop_options
from tools.common.training_loop import TrainingLoop, autocast, learning_rate


def options(folder, **changes) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_loop_options(parser, steps=4, lr=1e-2)
    flags = {"output": folder, "warmup": 2, "save-every": 2, "device": "cpu"} | changes
    return parser.parse_args([part for name, value in flags.items() for part in (f"--{name}", str(value))])


class Regression(nn.Module):
    """Learns to double its input; the dropout tells training from evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, batch):
        return {"total": (self.layers(batch["x"]) - 2 * batch["x"]).square().mean()}


def make_run(folder, **changes):
    """Return the loop and a function that runs it; batches and dropout follow from the step."""
    loop = TrainingLoop(Regression(), options(folder, **changes))

    def next_batch():
        torch.manual_seed(loop.step)
        return {"x": torch.randn(8, 4)}

    def validate():
        return {"held_out": loop.averaged({"x": torch.ones(2, 4)})["total"]}

    return loop, lambda: loop.run(next_batch, validate)


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "minutes"} for row in rows]


def test_a_resumed_run_equals_a_straight_one(tmp_path, capsys):
    straight, run = make_run(tmp_path / "straight")
    run()
    _, run = make_run(tmp_path / "stopped", **{"save-every": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", stop_at(2, TrainingLoop._train_step))
        with pytest.raises(KeyboardInterrupt):
            run()
    resumed, run = make_run(tmp_path / "stopped")
    assert resumed.step == 2 and "continuing at step 2 of 4" in capsys.readouterr().out
    seconds_at_resumption = resumed.seconds
    run()
    for name, value in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
    for name, value in straight.averaged.state_dict().items():
        torch.testing.assert_close(resumed.averaged.state_dict()[name], value, rtol=0, atol=0)
    assert [row["step"] for row in log_of(tmp_path / "stopped")] == [1, 2, 4]
    assert resumed.seconds > seconds_at_resumption > 0
    assert log_of(tmp_path / "stopped")[-1]["held_out"] == log_of(tmp_path / "straight")[-1]["held_out"]


def stop_at(step, train_step):
    def stopping(loop, batch):
        if loop.step == step:
            raise KeyboardInterrupt
        return train_step(loop, batch)

    return stopping


def test_validation_is_without_dropout_and_gradient_and_training_goes_on_with_it(tmp_path):
    loop = TrainingLoop(Regression(), options(tmp_path, steps=2, **{"save-every": 1}))
    figures, in_training = [], []

    def validate():
        losses = [model({"x": torch.ones(2, 4)})["total"] for model in (loop.averaged, loop.averaged, loop.model)]
        assert losses[0] == losses[1] and not any(loss.requires_grad for loss in losses)
        figures.append(losses[0])
        return {}

    def note_mode(step):
        in_training.append(loop.model.training and loop.averaged.training)

    loop.run(lambda: {"x": torch.randn(8, 4)}, validate, before_step=note_mode)
    assert len(figures) == 2 and in_training == [True, True]


def test_the_average_follows_the_weights_and_soon_forgets_the_first(tmp_path):
    loop, run = make_run(tmp_path, steps=30, lr=0.1)
    first = loop.model.layers[0].weight.detach().clone()
    run()
    last, average = loop.model.layers[0].weight, loop.averaged.module.layers[0].weight
    assert 0 < (average - last).norm() < 0.5 * (first - last).norm()


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path):
    loop = TrainingLoop(Regression(), options(tmp_path, steps=2))
    weights = []

    def next_batch():
        weights.append(loop.model.layers[0].weight.detach().clone())
        return {"x": torch.full((8, 4), 1.0 if loop.step else math.inf)}

    loop.run(next_batch, dict)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], loop.model.layers[0].weight)
    [row] = log_of(tmp_path)
    assert row["num_skipped"] == 1 and math.isfinite(row["total"])


def test_the_learning_rate_rises_and_falls_to_a_fiftieth(tmp_path):
    args = options(tmp_path, steps=100, lr=1.0, warmup=10)
    rates = [learning_rate(step, args) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3) and rates.index(max(rates)) == 9
    assert rates[50] == pytest.approx(0.51) and rates[100] == pytest.approx(0.02)
    assert learning_rate(0, options(tmp_path, warmup=0, lr=1.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("started", [1, 2])
def test_a_run_that_is_done_ends_at_its_next_checkpoint_also_if_it_is_started_again(tmp_path, started):
    for _ in range(started):
        loop, _ = make_run(tmp_path, steps=8)
        loop.run(lambda: {"x": torch.ones(2, 4)}, dict, is_done=lambda loop=loop: loop.step >= 3)
    assert loop.step == 4 and [row["step"] for row in log_of(tmp_path)] == [2, 4]


def test_a_run_of_another_model_is_refused(tmp_path):
    _, run = make_run(tmp_path)
    run()
    with pytest.raises(ValueError, match=r"checkpoint\.pt holds a model of other options; resume with the same ones"):
        TrainingLoop(torch.nn.Linear(4, 7), options(tmp_path))


def test_checkpoints_are_told_in_words_and_logged_as_json(tmp_path, capsys):
    _, run = make_run(tmp_path)
    run()
    *_, last = capsys.readouterr().out.splitlines()
    row = log_of(tmp_path)[-1]
    assert last.startswith("step 4, 0.0 minutes: num_skipped 0, total ") and f", held_out {row['held_out']:.4g}" in last


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_is_for_devices_that_have_instructions_for_it_unless_an_option_says_so(monkeypatch, has_instructions):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    parser = argparse.ArgumentParser()
    add_loop_options(parser, steps=1, lr=1)
    for flags, expected in (([], has_instructions), (["--bf16"], True), (["--no-bf16"], False)):
        args = parser.parse_args(["--output", "run", *flags])
        with autocast("cpu", args.bf16):
            assert torch.is_autocast_enabled("cpu") == expected
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if expected else torch.float32)

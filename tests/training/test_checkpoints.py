import pytest
import torch

from vita_audio.errors import RunError, is_lost_process
from vita_audio.training.checkpoints import (
    check_space,
    delete_leftovers,
    free_bytes,
    list_checkpoints,
    publish,
    unfinished_folder,
)
from vita_audio.training.stage import num_checkpoints
from vita_audio.training.trainer import SpeechTrainingArguments


def write(folder, step, content="new"):
    """Write a checkpoint as the Trainer does, without publishing it."""
    checkpoint = unfinished_folder(folder, step) / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text(content)


def test_a_checkpoint_appears_when_it_is_published_and_the_oldest_go(tmp_path):
    for step in (5, 10, 15):
        write(tmp_path, step)
        assert step not in dict(list_checkpoints(tmp_path))
        publish(tmp_path, step, limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-15"]


def test_a_checkpoint_replaces_one_of_the_same_step(tmp_path):
    for content in ("old", "new"):
        write(tmp_path, 5, content)
        publish(tmp_path, 5, limit=None)
    assert (tmp_path / "checkpoint-5" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_leftovers_are_deleted_and_nothing_else(tmp_path):
    write(tmp_path, 5)
    publish(tmp_path, 5, limit=None)
    write(tmp_path, 10)
    (tmp_path / ".checkpoint-1.deleted").mkdir()
    (tmp_path / ".hidden").mkdir()
    delete_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "checkpoint-5"]


def test_checkpoints_that_are_there_need_no_more_room(tmp_path):
    share = free_bytes(tmp_path) // 4
    check_space(tmp_path / "absent", 0, share, num_checkpoints=3)
    with pytest.raises(RunError, match=r"--output_dir .* needs about .* for 6 checkpoints .*--save_total_limit"):
        check_space(tmp_path, 0, share, num_checkpoints=6)
    for step in range(4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    check_space(tmp_path, 0, share, num_checkpoints=6)
    check_space(tmp_path, 0, 100 * share, num_checkpoints=0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_steps": 10}, 10),
        ({"save_steps": 0.1}, 10),
        ({"save_steps": 10, "save_total_limit": 2}, 3),
        ({"save_steps": 60, "save_total_limit": 2}, 1),
        ({"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}, 3),
    ],
)
def test_a_run_keeps_and_writes_this_many(tmp_path, arguments, expected):
    values = {"max_steps": 100, "save_strategy": "steps", "use_cpu": True} | arguments
    assert num_checkpoints(SpeechTrainingArguments(output_dir=str(tmp_path), **values)) == expected


def test_the_loss_of_another_process_is_told_from_other_errors():
    assert is_lost_process(RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error"))
    assert is_lost_process(torch.distributed.DistNetworkError("failed to recv"))
    assert not is_lost_process(RuntimeError("shapes cannot be multiplied"))

import json

import pytest

from vita_audio.training.run_folder import (
    ARGUMENTS_FILE,
    NUM_PROCESSES,
    RESULTS_FILE,
    STATE_FILE,
    check_arguments,
    clear_run,
    inspect_run_folder,
    last_checkpoint,
)


def add_checkpoint(folder, step, state="{}"):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    if state is not None:
        (checkpoint / STATE_FILE).write_text(state, encoding="utf-8")
    return checkpoint


def test_a_run_goes_from_new_to_started_to_finished(tmp_path):
    assert inspect_run_folder(tmp_path / "absent") == "new"
    assert inspect_run_folder(tmp_path) == "new"
    (tmp_path / ARGUMENTS_FILE).touch()
    assert inspect_run_folder(tmp_path) == "started"
    (tmp_path / RESULTS_FILE).touch()
    assert inspect_run_folder(tmp_path) == "finished"


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.tex.*--overwrite_output_dir"):
        inspect_run_folder(tmp_path)
    with pytest.raises(NotADirectoryError, match="thesis"):
        inspect_run_folder(tmp_path / "thesis.tex")


def test_the_last_checkpoint_is_the_newest_complete_one(tmp_path):
    assert last_checkpoint(tmp_path) is None
    add_checkpoint(tmp_path, 20)
    newest = add_checkpoint(tmp_path, 100)
    add_checkpoint(tmp_path, 120, state=None)
    add_checkpoint(tmp_path, 140, state='{"global_st')
    (tmp_path / "checkpoint-final").mkdir()
    assert last_checkpoint(tmp_path) == newest


def test_clearing_leaves_what_is_not_of_the_run(tmp_path):
    add_checkpoint(tmp_path, 20)
    add_checkpoint(tmp_path, 40, state=None)
    for name in (ARGUMENTS_FILE, RESULTS_FILE, "thesis.tex"):
        (tmp_path / name).touch()
    clear_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


ARGUMENTS = {
    "model_name_or_path": "models/a",
    "dataset_name": "a.yaml",
    "learning_rate": 1e-3,
    "max_steps": 100,
    "per_device_train_batch_size": 4,
    "audio_code_dir": "codes",
    "logging_steps": 10,
    NUM_PROCESSES: 2,
}


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        ({}, "started finished"),
        ({"audio_code_dir": "elsewhere", "logging_steps": 1}, "started finished"),
        ({"model_name_or_path": "./models/../models/a"}, "started finished"),
        ({"max_steps": 200}, "started"),
        ({"max_steps": 50}, ""),
        ({"per_device_train_batch_size": 8, NUM_PROCESSES: 1}, "started finished"),
        ({"per_device_train_batch_size": 8}, ""),
        ({"model_name_or_path": "models/b"}, ""),
        ({"dataset_name": "b.yaml"}, ""),
        ({"learning_rate": 1e-4}, ""),
    ],
)
def test_a_run_goes_on_with_arguments_that_mean_the_same(tmp_path, changes, states):
    (tmp_path / ARGUMENTS_FILE).write_text(json.dumps(ARGUMENTS))
    for state in ("started", "finished"):
        if state in states:
            check_arguments(tmp_path, ARGUMENTS | changes, state)
        else:
            name = next(iter(changes))
            message = f"a {state} run with other arguments .{name} .*, now {changes[name]!r}.; .*--overwrite_output"
            with pytest.raises(FileExistsError, match=message):
                check_arguments(tmp_path, ARGUMENTS | changes, state)


def test_a_damaged_arguments_file_is_named(tmp_path):
    (tmp_path / ARGUMENTS_FILE).write_text("{")
    with pytest.raises(FileExistsError, match=f"{ARGUMENTS_FILE} is damaged .*--overwrite_output_dir"):
        check_arguments(tmp_path, ARGUMENTS, "started")

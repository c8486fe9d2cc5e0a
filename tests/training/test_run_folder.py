import pytest

from vita_audio.training.run_folder import (
    ARGUMENTS_FILE,
    RESULTS_FILE,
    STATE_FILE,
    RunState,
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
    assert inspect_run_folder(tmp_path / "absent") is RunState.NEW
    assert inspect_run_folder(tmp_path) is RunState.NEW
    (tmp_path / ARGUMENTS_FILE).touch()
    assert inspect_run_folder(tmp_path) is RunState.STARTED
    (tmp_path / RESULTS_FILE).touch()
    assert inspect_run_folder(tmp_path) is RunState.FINISHED


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
    assert last_checkpoint(tmp_path, max_steps=101) == newest


def test_the_checkpoint_of_the_last_step_is_passed_over(tmp_path):
    earlier = add_checkpoint(tmp_path, 20)
    add_checkpoint(tmp_path, 100)
    assert last_checkpoint(tmp_path, max_steps=100) == earlier


def test_clearing_leaves_what_is_not_of_the_run(tmp_path):
    add_checkpoint(tmp_path, 20)
    add_checkpoint(tmp_path, 40, state=None)
    for name in (ARGUMENTS_FILE, RESULTS_FILE, "thesis.tex"):
        (tmp_path / name).touch()
    clear_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

"""Disks that are full or read-only end a run with one line, and leave its checkpoints as they are."""

import shutil
import subprocess

import pytest
import torch
from models.toy_models import make_model
from processes import run
from test_survival import flags_of
from toy_run import logged

from vita_audio.training.checkpoints import checkpoint_bytes
from vita_audio.training.run_folder import last_checkpoint


@pytest.fixture
def mount(tmp_path):
    """Mount small file systems; skip the test where that is not allowed."""
    folders = []

    def make(name, megabytes, *options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={megabytes}m", *options)), "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
        folders.append(folder)
        return folder

    yield make
    for folder in folders:
        subprocess.run(["umount", folder], check=True)


def last_lines(log):
    return [line for line in log.read_text().splitlines() if line.startswith("finetune_sts.py: ")]


def fill(folder):
    """Use up the rest of a disk."""
    try:
        with (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
    except OSError:
        pass


def train(toy_run, folder, output_dir, **options):
    log = folder / "log.txt"
    changes = {name: options.pop(name) for name in list(options) if name != "kill_when"}
    return run(flags_of(toy_run, folder, output_dir, "none", 1, **changes), 1, log, **options), log


def test_a_run_without_room_for_its_checkpoints_does_not_begin(toy_run, tmp_path, mount):
    output_dir = mount("small", 1) / "run"
    codes, log = train(toy_run, tmp_path, output_dir, save_total_limit=100)
    assert codes == [1]
    (line,) = last_lines(log)
    assert "for 6 checkpoints of 0.00 GiB and the model, and has 0.00 GiB free; make room" in line
    assert not list(output_dir.glob("*checkpoint*"))


def test_the_estimate_is_the_size_of_a_checkpoint(tmp_path):
    model = make_model(2, hidden_size=128, intermediate_size=256)
    model.lm_head.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    weights, checkpoint = checkpoint_bytes(model, deepspeed=False)
    sizes = [(tmp_path / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")]
    assert weights == pytest.approx(sizes[0], rel=0.05) and checkpoint == pytest.approx(sum(sizes), rel=0.05)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(toy_run, tmp_path, mount):
    folder = mount("small", 8)
    output_dir = folder / "run"

    def fill_after_first_checkpoint():
        if (output_dir / "checkpoint-1").exists() and not (folder / "filler").exists():
            fill(folder)
        return False

    codes, log = train(toy_run, tmp_path, output_dir, kill_when=fill_after_first_checkpoint)
    assert codes == [1]
    (line,) = last_lines(log)
    assert "could not be written" in line and "run the same command to continue" in line
    last = last_checkpoint(output_dir)
    assert last is not None and not list(output_dir.glob(".checkpoint*"))
    (folder / "filler").unlink()
    codes, log = train(toy_run, tmp_path, output_dir)
    assert codes == [0] and len(logged(output_dir)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "packs", "codes"])
def test_folders_that_cannot_be_written_are_named(toy_run, tmp_path, mount, name):
    read_only = mount(name, 1, "ro")
    codes, log = train(toy_run, tmp_path, tmp_path / "run")
    assert codes in ([1], [2])
    (line,) = last_lines(log)
    assert str(read_only) in line


@pytest.mark.slow
def test_codes_and_packs_are_read_from_read_only_folders(toy_run, tmp_path, mount):
    codes, log = train(toy_run, tmp_path, tmp_path / "run", max_steps=1)
    assert codes == [0], log.read_text()
    for name in ("codes", "packs"):
        copy = tmp_path / f"{name}_copy"
        shutil.copytree(tmp_path / name, copy)
        shutil.rmtree(tmp_path / name)
        folder = mount(name, 4)
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    codes, log = train(toy_run, tmp_path, tmp_path / "again", max_steps=1, extract_codes=False)
    assert codes == [0], log.read_text()[-3000:]

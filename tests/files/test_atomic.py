"""Atomic files: present and complete, or absent."""

import json

import pytest

from vita_audio.files.atomic import atomic_folder, atomic_path, write_json


def test_json_is_written_with_its_folder_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"ß": [1]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ß": [1]}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="full"):
        with atomic_path(path) as partial:
            partial.write_text("ne")
            raise RuntimeError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a" / "packs"
    with atomic_folder(path) as folder:
        (folder / "b.txt").write_text("b")
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["b.txt"] and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode == path.parent.stat().st_mode  # as any other new folder, not for the owner alone


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="full"):
        with atomic_folder(tmp_path / "packs") as folder:
            (folder / "b.txt").write_text("b")
            raise RuntimeError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_faster_process_is_kept(tmp_path):
    with atomic_folder(tmp_path / "packs") as slow:
        (slow / "slow.txt").write_text("")
        with atomic_folder(tmp_path / "packs") as fast:
            (fast / "fast.txt").write_text("")
    assert [file.name for file in tmp_path.iterdir()] == ["packs"]
    assert [file.name for file in (tmp_path / "packs").iterdir()] == ["fast.txt"]

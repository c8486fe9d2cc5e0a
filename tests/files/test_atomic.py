"""Atomic files: present and complete, or absent."""

import json

import pytest

from vita_audio.files.atomic import atomic_path, write_json


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

"""Audio codes through Ray Data: the same database, also when a worker is killed, and continued when interrupted."""

import json
import os
import signal
import sqlite3
import sys
from functools import partial

import numpy as np
import pytest
from toy_codec import ToyCodec, make_toy_codec, write_codes

from tools import extract_audio_codes
from vita_audio.data.codes import AudioCodeStore, extract_codes
from vita_audio.data.ray_map import map_with_ray
from vita_audio.optional import MissingPackageError


class DyingCodec(ToyCodec):
    """Kills the first process that encodes with it."""

    def __init__(self, marker):
        self.marker = marker

    def encode(self, wave, sample_rate):
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().encode(wave, sample_rate)
        os.kill(os.getpid(), signal.SIGKILL)


def make_dying_codec(marker, device):
    return DyingCodec(marker)


def content(store):
    with sqlite3.connect(store.path) as database:
        return [sorted(database.execute(f"SELECT * FROM {table}")) for table in ("codes", "files")]


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'--ray needs the package ray .*pip install "vita-audio\[ray\]"'):
        next(map_with_ray(make_toy_codec, [1], 1))


def test_the_gpus_of_a_cluster_need_not_be_in_this_machine(tmp_path, monkeypatch, capsys):
    """It gets as far as Ray, which is not installed."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    sample = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(sample), encoding="utf-8")
    (tmp_path / "data.yaml").write_text("dataset: {all: {data_paths: [data.jsonl]}}", encoding="utf-8")
    flags = ["--data", tmp_path / "data.yaml", "--codes", tmp_path / "codes", "--devices", "cuda:99"]
    messages = []
    for more in ([], ["--ray"]):
        with pytest.raises(SystemExit):
            extract_audio_codes.main([*map(str, flags), "--audio-tokenizer-path", "embedded", *more])
        messages.append(capsys.readouterr().err)
    assert "a GPU that is here, got 'cuda:99'" in messages[0] and "--ray needs the package ray" in messages[1]


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_give_the_same_database(tmp_path, store):
    pytest.importorskip("ray")
    paths = [write_codes(tmp_path / f"{number}.wav", np.arange(number + 5)) for number in range(40)]
    paths += [write_codes(tmp_path / "copy.wav", np.arange(5)), tmp_path / "empty.wav"]
    paths[-1].touch()
    extract_codes(paths[:10], store, make_toy_codec)  # an earlier run
    marker = tmp_path / "killed"
    make_tokenizer = partial(make_dying_codec, str(marker))
    report = extract_codes(paths, store, make_tokenizer, num_workers=2, mapper=map_with_ray)
    assert marker.exists()
    assert (report.num_files, report.num_present) == (42, 10) and list(report.failures) == [str(paths[-1])]
    alone = AudioCodeStore(tmp_path / "alone", ToyCodec.fingerprint)
    extract_codes(paths, alone, make_toy_codec)
    assert content(store) == content(alone)
    again = extract_codes(paths[:-1], store, make_toy_codec, num_workers=2, mapper=map_with_ray)
    assert again.num_present == 41 and again.num_encoded == 0

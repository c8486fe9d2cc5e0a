"""Files of checkpoint folders: found, and refused with the name of what is missing or damaged."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from broken_folders import INDEX, SHARDS, cut_off, make_pointer, make_sharded
from safetensors.numpy import save_file

from vita_audio.files.checkpoint import (
    check_weights,
    check_whole,
    find_checkpoint,
    read_json,
    read_yaml,
)


@pytest.fixture
def folder(tmp_path):
    return make_sharded(tmp_path / "model")


def test_a_whole_folder_passes(folder):
    assert [path.name for path in check_weights(folder)] == list(SHARDS)


def test_safetensors_come_before_other_weights(folder):
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert [path.name for path in check_weights(folder)] == list(SHARDS)
    save_file({"a": np.zeros(1)}, folder / "model.safetensors")
    assert [path.name for path in check_weights(folder)] == ["model.safetensors"]
    for path in folder.glob("model*"):
        path.unlink()
    assert [path.name for path in check_weights(folder)] == ["pytorch_model.bin"]


def without_index(folder):
    (folder / INDEX).unlink()


def without_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()


def of_another_checkpoint(folder):
    save_file({"layers.0.a": np.zeros((3, 4), np.float32)}, folder / SHARDS[0])


def leading_outside(folder):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "../../secret.safetensors"}}))


def without_metadata(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"layers.0.a": SHARDS[0]}}))


DAMAGES = {
    "missing shard": (lambda folder: (folder / SHARDS[1]).unlink(), rf"{SHARDS[1]} is missing \(1 of 2 shards in"),
    "missing index": (without_index, rf"{INDEX} is missing, and without it {SHARDS[0]}, {SHARDS[1]} cannot be read"),
    "no weights": (without_weights, "no weights in .*: neither model.safetensors nor pytorch_model.bin"),
    "cut off": (
        lambda folder: cut_off(folder / SHARDS[0]),
        rf"{SHARDS[0]} is cut off or damaged .* 2\d\d bytes.; get it again",
    ),
    "cut in the head": (
        lambda folder: cut_off(folder / SHARDS[0], 150),
        rf"{SHARDS[0]} is cut off or damaged",
    ),
    "pointer": (lambda folder: make_pointer(folder / SHARDS[0]), rf"{SHARDS[0]} is a Git LFS .* 4,976,687,216 bytes "),
    "index pointer": (lambda folder: make_pointer(folder / INDEX), rf"{INDEX} is a Git LFS pointer"),
    "cut index": (lambda folder: cut_off(folder / INDEX), rf"{INDEX} is not JSON .* it may be cut off"),
    "empty": (lambda folder: (folder / SHARDS[0]).write_bytes(b""), rf"{SHARDS[0]} is empty; get it again"),
    "too long": (
        lambda folder: (folder / SHARDS[0]).open("ab").write(b"x"),
        rf"{SHARDS[0]} is cut off or damaged",
    ),
    "web page": (lambda folder: (folder / SHARDS[0]).write_text("<html>" * 99), rf"{SHARDS[0]} is cut off or damaged"),
    "mixed": (of_another_checkpoint, rf"{SHARDS[0]} lacks layers.0.b \(1 tensors\), which {INDEX} says it holds"),
    "no metadata": (without_metadata, rf"{INDEX} must hold metadata and weight_map, got \['weight_map'\]"),
    "leading outside": (leading_outside, "must name files in its own folder, got '../../secret.safetensors'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(folder, name):
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        check_weights(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_torch_file_that_is_cut_off_is_refused(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "flow.pt")
    check_whole(tmp_path / "flow.pt")
    cut_off(tmp_path / "flow.pt", 100)
    with pytest.raises(ValueError, match=r"flow.pt is cut off after 1,\d\d\d bytes; get it again"):
        check_whole(tmp_path / "flow.pt")


def test_json_must_be_an_object(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="config.json must hold a JSON object, got a list"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a", "a.yaml must hold settings, got a list"),
        (b"a: [1,", "a.yaml is not YAML"),
        (b"\xff\xfe", "is not YAML"),
    ],
)
def test_yaml_must_be_settings(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_a_folder_is_taken_as_it_is(folder, monkeypatch):
    assert find_checkpoint(folder) == folder
    monkeypatch.chdir(folder.parent)
    assert find_checkpoint("model", offline=True).resolve() == folder


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere", "nowhere"])
def test_a_missing_folder_is_refused(name):
    with pytest.raises(FileNotFoundError, match=f"no folder {name}; give the folder of a checkpoint, or its name"):
        find_checkpoint(name)


def test_a_file_is_no_folder(folder):
    with pytest.raises(NotADirectoryError, match="must be a folder, got the file .*config.json"):
        find_checkpoint(folder / "config.json")


COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs; counts requests and remembers which files were fetched."""

    files: dict[str, bytes] = {}
    fetched: list[str] = []

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/model"):
            if "/tree/" in path:
                rows = [{"type": "file", "path": k, "size": len(v), "oid": "1" * 40} for k, v in self.files.items()]
                return self.reply(json.dumps(rows).encode(), "application/json", head)
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "someone/model", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self.reply(json.dumps(info | {"downloads": 0, "likes": 0}).encode(), "application/json", head)
        name = path.removeprefix(f"/someone/model/resolve/{COMMIT}/")
        if name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            return self.end_headers()
        if not head:
            self.fetched.append(name)
        return self.reply(self.files[name], "application/octet-stream", head)

    def reply(self, content, kind, head):
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": len(content), "X-Repo-Commit": COMMIT}
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if not head:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def find_in_another_process(name, offline, files=None, **environment):
    code = (
        "import sys\nfrom vita_audio.files.checkpoint import find_checkpoint\n"
        f"try: print(find_checkpoint({name!r}, offline={offline}, files={files}))\n"
        "except OSError as error: sys.exit(str(error))"
    )
    cleared = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
    result = subprocess.run(
        [sys.executable, "-c", code], env=cleared | environment, capture_output=True, text=True, timeout=300
    )
    return result.stdout.strip() or result.stderr.strip()


def test_a_hub_name_is_downloaded_once_and_found_offline_later(folder, tmp_path):
    """A server of our own stands for the hub."""
    wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files, Hub.fetched = wanted | {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"x"}, []
    Hub.files["codec.onnx"] = b"x"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        found = find_in_another_process("someone/model", False, **settings)
        unknown = find_in_another_process("someone/other", False, **settings)
        assert sorted(Hub.fetched) == sorted(wanted), found
        assert {name: open(f"{found}/{name}", "rb").read() for name in os.listdir(found)} == wanted
        Hub.fetched.clear()
        assert find_in_another_process("someone/model", False, ["codec.onnx", "codec.pt"], **settings) == found
    finally:
        server.shutdown()
    assert Hub.fetched == ["codec.onnx"]  # of the files that were asked for, all that there are
    assert find_in_another_process("someone/model", True, **settings) == found
    assert find_in_another_process("someone/model", False, HF_HUB_OFFLINE="1", **settings) == found
    assert "someone/other is not a local folder and could not be downloaded from the hub (" in unknown
    missing = find_in_another_process("someone/other", True, **settings)
    assert missing.startswith(
        "someone/other is not a local folder and could not be downloaded from the hub (offline, and it"
    )
    assert "hf download someone/other --local-dir DIR" in missing

"""Small checkpoint folders of made-up tensors, and ways in which a download breaks them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4976687216\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def make_sharded(folder: Path) -> Path:
    """Write two shards of two tensors each, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for number, name in enumerate(SHARDS):
        tensors = {f"layers.{number}.{part}": np.full((3, 4), number, np.float32) for part in ("a", "b")}
        save_file(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 192}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_mtp"}))
    return folder


def make_pointer(path: Path) -> None:
    """Leave what a clone without Git LFS has in place of a large file."""
    path.write_text(POINTER.format("0" * 64))


def cut_off(path: Path, num_bytes: int = 10) -> None:
    """Drop the last bytes, as when a download stops."""
    path.write_bytes(path.read_bytes()[:-num_bytes])

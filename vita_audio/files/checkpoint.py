"""Find the files of a checkpoint by folder or hub name, and check that they are complete before anything is loaded.

Supports the layouts of transformers (`model.safetensors`, shards with an index, `pytorch_model.bin`) and torch (`.pt`).
Only the headers of weight files are read.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")  # in order of preference
TORCH_SUFFIXES = (".pt", ".pth", ".bin")

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_NEVER_DOWNLOADED = ("*.py", "*.msgpack", "*.h5", "*.onnx", "*.gguf", "*.png", "*.jpg", "*.gif", "*.mp4")
_POINTER = b"version https://git-lfs"  # start of the text in place of a file in a clone without Git LFS


def find_checkpoint(name_or_path: str | Path, *, offline: bool = False, files: Sequence[str] | None = None) -> Path:
    """Return the folder of a checkpoint: the given folder, or the local copy of a repository on the hub.

    A repository is downloaded if there is no local copy. Python files are never downloaded; `.onnx` files, and `.bin`
    files of a repository with safetensors, only if `files` names them.

    Args:
        name_or_path: Folder, or hub name such as `VITA-MLLM/VITA-Audio-Boost`.
        offline: Use only files that were downloaded earlier, like the environment variable HF_HUB_OFFLINE=1.
        files: Names of the files to download; names that the repository lacks are ignored.
    Raises: FileNotFoundError or NotADirectoryError, with the remedy.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"a checkpoint must be a folder, got the file {path}")
    if not _HUB_NAME.fullmatch(str(name_or_path)):
        raise FileNotFoundError(
            f"no folder {path}; give the folder of a checkpoint, or its name on the hub (owner/name)"
        )
    return _find_on_hub(str(name_or_path), offline, files)


def _find_on_hub(name: str, offline: bool, files: Sequence[str] | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    try:
        if offline:  # callers check that the files exist
            return Path(snapshot_download(name, local_files_only=True, ignore_patterns="*"))
        if files is not None:
            return Path(snapshot_download(name, allow_patterns=list(files)))
        folder = Path(snapshot_download(name, ignore_patterns=[*_NEVER_DOWNLOADED, "*.bin"]))
        if not any(path.suffix in (".safetensors", ".pt") for path in folder.iterdir()):
            folder = Path(snapshot_download(name, ignore_patterns=list(_NEVER_DOWNLOADED)))
        return folder
    except OSError as error:
        reason = "offline, and it was not downloaded earlier" if offline else str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{name} is not a local folder and could not be downloaded from the hub ({reason}); run hf download {name} "
            "--local-dir DIR on a machine with network access, and give that folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: FileNotFoundError; ValueError naming the file and the fault."""
    return _parse(path, json.loads, "JSON", holds="a JSON object")


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> dict[str, Any]:
    """Read a YAML file of settings with a loader that knows its tags.

    Raises: FileNotFoundError; ValueError naming the file and the fault.
    """
    return _parse(path, partial(yaml.load, Loader=loader), "YAML", holds="settings")


def _parse(path: Path, parse: Callable[[str], Any], kind: str, *, holds: str | None = None) -> Any:
    _check_head(path)
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not {kind} ({error}); it may be cut off, get it again") from error
    if holds and not isinstance(values, dict):
        raise ValueError(f"{path} must hold {holds}, got a {type(values).__name__}; get it again")
    return values


def check_whole(path: Path) -> None:
    """Check that a file exists, is not a Git LFS pointer, and is complete as far as its format shows.

    Raises: FileNotFoundError; ValueError naming the file, the fault and the remedy.
    """
    head = _check_head(path)
    if path.suffix == ".json":
        _parse(path, json.loads, "JSON")  # some are lists, such as SenseVoiceSmall's tokens.json
    elif path.suffix == ".safetensors":
        _names(path)
    elif path.suffix in TORCH_SUFFIXES and head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off after {path.stat().st_size:,} bytes; get it again")


def _check_head(path: Path) -> bytes:
    """Return the first bytes of a file that exists, is not empty and is not a Git LFS pointer."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; get the folder again")
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        raise ValueError(f"{path} is empty; get it again")
    if head.startswith(_POINTER):
        size = re.search(rb"size (\d+)", head)
        real = f"of {int(size[1]):,} bytes " if size else ""
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file {real}it stands for; run git lfs pull in its folder, or "
            "download the folder with hf download"
        )
    return head


def _names(path: Path) -> set[str]:
    """List the tensors of a safetensors file. Raises: ValueError if it is damaged, too short or too long."""
    try:
        with safe_open(path, "numpy") as file:
            return set(file.keys())
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(f"{path} is cut off or damaged ({error}; {size:,} bytes); get it again") from error


def check_weights(folder: Path) -> list[Path]:
    """List the weight files of a transformers checkpoint, after checking that they are complete and match their index.

    Safetensors come before `.bin`, one file before shards with an index.

    Raises: FileNotFoundError naming the files that are missing; ValueError naming the file and the fault.
    """
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            shards = {folder / name: set()}
        elif index.is_file():
            shards = _shards(index)
        else:
            continue
        for path, tensors in shards.items():
            check_whole(path)
            if path.suffix == ".safetensors" and (lost := sorted(tensors - _names(path))):
                raise ValueError(
                    f"{path} lacks {', '.join(lost[:3])} ({len(lost)} tensors), which {index.name} says it holds; the "
                    "files are of different checkpoints, get the folder again"
                )
        return list(shards)
    stray = sorted(path.name for path in folder.glob("*-of-*") if path.suffix in (".safetensors", ".bin"))
    if stray:
        raise FileNotFoundError(
            f"{folder / WEIGHT_NAMES[0]}.index.json is missing, and without it {', '.join(stray[:3])} cannot be read; "
            "get it again"
        )
    raise FileNotFoundError(f"no weights in {folder}: neither {' nor '.join(WEIGHT_NAMES)}, nor shards of them")


def _shards(index: Path) -> dict[Path, set[str]]:
    """Return the shards that an index names, sorted, with the tensors in each."""
    values = read_json(index)
    places = values.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(values.get("metadata"), dict):
        raise ValueError(f"{index} must hold metadata and weight_map, got {sorted(values)}; get it again")
    if outside := [name for name in places.values() if Path(str(name)).name != name]:
        raise ValueError(f"{index} must name files in its own folder, got {outside[0]!r}; do not use this checkpoint")
    shards = {index.parent / name: set() for name in sorted(set(places.values()))}
    if missing := [path.name for path in shards if not path.is_file()]:
        raise FileNotFoundError(
            f"{index.parent / missing[0]} is missing ({len(missing)} of {len(shards)} shards in {index.name} are: "
            f"{', '.join(missing[:4])}); get the missing files"
        )
    for tensor, name in places.items():
        shards[index.parent / name].add(tensor)
    return shards

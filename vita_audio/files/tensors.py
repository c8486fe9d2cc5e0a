"""Read weight files of several libraries without executing code from them, and load them into modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vita_audio.files.checkpoint import check_whole


def find_file(folder: Path, *names: str) -> Path:
    """Return the first of these files that exists in a folder. Raises: FileNotFoundError."""
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no {' or '.join(names)} in {folder}; get the folder again, or give the right one")
    return path


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a `.safetensors` file, or a pickled state dict, possibly under the key `state_dict`.

    Args:
        device: Device of the tensors; "meta" for only shapes and dtypes.
    Raises: FileNotFoundError; ValueError naming the file and the fault.
    """
    check_whole(path)
    try:
        if path.suffix == ".safetensors":
            return {name: value.to(device) for name, value in load_file(path).items()}
        values = torch.load(path, device, weights_only=True)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, not a state dict")
    except Exception as error:  # from pickle, zip or safetensors, which share no base class
        raise ValueError(f"{path} cannot be read as weights: {error}; get it again") from error
    values = values.get("state_dict", values)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def fill_module(module: nn.Module, weights: Mapping[str, Tensor], path: Path, fits: str) -> None:
    """Fill a module, which may be on the meta device, with weights; floating-point weights become float32.

    Args:
        path: File of the weights, for the error message.
        fits: Name of the module, for the error message.
    Raises: ValueError naming the file and its missing, unexpected and misshapen weights.
    """
    expected = module.state_dict()
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    misshapen = sorted(name for name in expected.keys() & floats.keys() if expected[name].shape != floats[name].shape)
    for name in misshapen:
        del floats[name]
    report = module.load_state_dict(floats, strict=False, assign=True)
    problems = {
        "missing": sorted(set(report.missing_keys) - set(misshapen)),
        "unexpected": sorted(report.unexpected_keys),
        "of another shape": misshapen,
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {', '.join(names[:5])} ({len(names)})" for kind, names in problems.items() if names)
        raise ValueError(f"{path} does not fit {fits}: {found}")

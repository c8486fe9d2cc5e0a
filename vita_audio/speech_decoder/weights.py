"""Weights of the released speech decoders, pickled or as safetensors, into our modules."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from vita_audio.checkpoints.files import check_whole


def load_weights(module: nn.Module, folder: Path, name: str, config_name: str = "config.yaml") -> None:
    """Fill a module made on the meta device from `name.safetensors` or `name.pt`, as float32.

    Raises: FileNotFoundError, or ValueError naming the file and its missing, unexpected or misshapen weights.
    """
    paths = [folder / f"{name}.safetensors", folder / f"{name}.pt"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no speech decoder weights at {paths[0]} or {paths[1]}")
    check_whole(path)
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if not isinstance(weights, dict):
            raise TypeError(f"it holds a {type(weights).__name__}, not a state dict")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    weights = _with_our_names(weights)
    expected = module.state_dict()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(
            key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape
        ),
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {', '.join(keys[:5])} ({len(keys)})" for what, keys in problems.items() if keys)
        raise ValueError(f"{path} does not fit {folder / config_name}: {found}")
    module.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)


def _with_our_names(weights: dict[str, Any]) -> dict[str, Any]:
    """Undo what trainers of CosyVoice do to names: a prefix, torch's newer weight norm, counters beside the weights."""
    tensors = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    return {
        re.sub(
            r"parametrizations\.weight\.original([01])$",
            lambda match: f"weight_{'gv'[int(match[1])]}",
            key.removeprefix("generator."),
        ): value
        for key, value in tensors.items()
    }

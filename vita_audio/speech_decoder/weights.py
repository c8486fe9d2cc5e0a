"""Load the weights of released speech decoders, pickled or as safetensors, into our modules."""

import re
from pathlib import Path

from torch import nn

from vita_audio.files.tensors import fill_module, find_file, read_tensors


def load_weights(module: nn.Module, folder: Path, name: str, config_name: str = "config.yaml") -> None:
    """Fill a module on the meta device with float32 weights from `name.safetensors` or `name.pt`.

    Raises: FileNotFoundError, or ValueError naming the file and its missing, unexpected or misshapen weights.
    """
    path = find_file(folder, f"{name}.safetensors", f"{name}.pt")
    weights = {our_name(key): value for key, value in read_tensors(path).items()}
    fill_module(module, weights, path, str(folder / config_name))


def our_name(name: str) -> str:
    """Undo what CosyVoice's trainers change in a tensor's name: a prefix, and torch's newer weight norm."""
    return re.sub(
        r"parametrizations\.weight\.original([01])$",
        lambda match: f"weight_{'gv'[int(match[1])]}",
        name.removeprefix("generator."),
    )

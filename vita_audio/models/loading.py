"""Load checkpoints with our classes: configuration and weights.

A checkpoint may name classes of its own (`auto_map` in config.json) and bring their code; it is never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from vita_audio.files.checkpoint import CONFIG_FILE, GENERATION_FILE, check_weights, read_json

Model = TypeVar("Model", bound=PreTrainedModel)


def read_config(path: str | Path, kinds: Iterable[type[PretrainedConfig]]) -> PretrainedConfig:
    """Read a model configuration.

    Args:
        path: Folder of a checkpoint, or a JSON file.
        kinds: Classes it may be of.
    Raises: FileNotFoundError; ValueError if it is damaged, of another `model_type`, or has impossible values.
    """
    path = Path(path)
    file = path / CONFIG_FILE if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise FileNotFoundError(f"no {CONFIG_FILE} in {path}; give the folder of a model")
    values = read_json(file)
    by_type = {kind.model_type: kind for kind in kinds}
    model_type = values.get("model_type")
    if model_type not in by_type:
        raise ValueError(f"{file}: model_type must be one of {', '.join(sorted(by_type))}, got {model_type}")
    values.pop("auto_map", None)
    try:
        return by_type[model_type].from_dict(values)
    except Exception as error:  # the strict configurations of transformers raise kinds of their own
        raise ValueError(f"{file}: {error}") from error


def load_weights(
    model_class: type[Model],
    folder: str | Path,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    **options,
) -> tuple[Model, list[str]]:
    """Load the weights of a folder, after a look at whether its files are whole.

    Args:
        config: The model's; it may have more than the folder holds.
        dtype: Of the loaded weights.
        device_map: Where they go, as in transformers: "auto" spreads them over the GPUs and the memory.
        options: More for the class's `from_pretrained`, such as `attn_implementation`.
    Returns: The model, and the parameters that the folder lacks, which are random.
    Raises: FileNotFoundError, ValueError naming the file that is missing or damaged, or the weights that do not fit.
    """
    folder = Path(folder)
    check_weights(folder)
    if (folder / GENERATION_FILE).exists():  # a damaged one would be taken for none, and decoding be another
        read_json(folder / GENERATION_FILE)
    with quiet_loading():
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    problems = {
        "weights the model lacks": sorted(report["unexpected_keys"]),
        "of another shape": [
            f"{key} {tuple(found)} instead of {tuple(wanted)}"
            for key, found, wanted in sorted(report["mismatched_keys"])
        ],
        "unreadable": sorted(map(str, report["error_msgs"])),
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {', '.join(keys[:5])} ({len(keys)})" for what, keys in problems.items() if keys)
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG_FILE}: {found}")
    return model, sorted(report["missing_keys"])


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Leave out transformers' report of missing weights, which our callers judge themselves."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)

"""Load configuration and weights of checkpoints into our classes.

A checkpoint may name its own classes (`auto_map` in config.json) and contain their code; that code is never executed.
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
        kinds: Configuration classes that are allowed.
    Raises: FileNotFoundError; ValueError if it is damaged, has another `model_type`, or impossible values.
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
    except Exception as error:  # the strict configurations of transformers raise their own exceptions
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
    """Load the weights of a folder, after checking that its files are complete.

    Args:
        config: Configuration of the model, which may have parameters that the folder lacks.
        dtype: dtype of the loaded weights.
        device_map: Placement of the weights as in transformers: "auto" spreads them over GPUs and main memory.
        options: More arguments for `from_pretrained`, such as `attn_implementation`.
    Returns: The model, and the names of parameters that the folder lacks, which are initialised at random.
    Raises: FileNotFoundError, ValueError naming the file that is missing or damaged, or the weights that do not fit.
    """
    folder = Path(folder)
    check_weights(folder)
    if (folder / GENERATION_FILE).exists():  # transformers would silently ignore a damaged one
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
    """Suppress transformers' report of missing weights, which our callers check."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)

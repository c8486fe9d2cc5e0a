"""Load configuration and weights of checkpoints into our classes.

A checkpoint may name its own classes (`auto_map` in config.json) and contain their code; that code is never executed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, Qwen2Config
from transformers.utils import logging as transformers_logging

from vita_audio.files.checkpoint import (
    CONFIG_FILE,
    GENERATION_FILE,
    check_weights,
    check_whole,
    read_header,
    read_json,
    weight_files,
)
from vita_audio.files.tensors import read_tensors

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)


def read_config(path: str | Path, kinds: Iterable[type[PretrainedConfig]]) -> PretrainedConfig:
    """Read a model configuration; that of a checkpoint with a trained head says untied, see `keep_trained_head`.

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
        config = by_type[model_type].from_dict(values)
    except Exception as error:  # the strict configurations of transformers raise kinds of their own
        raise ValueError(f"{file}: {error}") from error
    if path.is_dir() and isinstance(config, Qwen2Config) and config.tie_word_embeddings:
        keep_trained_head(config, path)
    return config


def keep_trained_head(config: Qwen2Config, folder: Path) -> None:
    """Untie a configuration whose weight files hold an output head that differs from the embeddings.

    Merging an adapter of a tied model leaves such files, and tying on the way to a new checkpoint would lose the head.
    """
    try:
        files = weight_files(folder)
    except FileNotFoundError:  # a configuration alone
        return
    head = _find_tensor(files, HEAD)
    if head is None:
        return
    embeddings = _find_tensor(files, EMBEDDINGS)
    if embeddings is not None and not torch.equal(head, embeddings.to(head.dtype)):
        logger.warning(
            "%s says tie_word_embeddings, but the weights hold an %s that differs from the embeddings; it is kept, and "
            "the model is loaded untied",
            folder / CONFIG_FILE,
            HEAD,
        )
        config.tie_word_embeddings = False


def _find_tensor(files: Iterable[Path], name: str) -> Tensor | None:
    """Read one tensor from the weight files of a checkpoint; None if no file holds it."""
    for path in files:
        check_whole(path)
        if path.suffix == ".safetensors":
            if name in read_header(path):
                with safe_open(path, "pt") as file:
                    return file.get_tensor(name)
        elif name in read_tensors(path, "meta"):
            return read_tensors(path)[name]
    return None


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

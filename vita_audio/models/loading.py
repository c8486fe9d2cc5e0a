"""Load configuration and weights of checkpoints into our classes.

A checkpoint may name its own classes (`auto_map` in config.json) and contain their code; that code is never executed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from vita_audio.files.checkpoint import CONFIG_FILE, GENERATION_FILE, check_weights, read_json
from vita_audio.files.tensors import load_model, read_tensors
from vita_audio.models import SPEECH_CONFIGS, TEXT_CONFIGS, MTPConfig

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"

logger = logging.getLogger(__name__)


def read_config(path: str | Path, kinds: Iterable[type[PretrainedConfig]]) -> PretrainedConfig:
    """Read a model configuration, untied if the checkpoint has an output head that differs from the embeddings.

    Args:
        path: Folder of a checkpoint, or a JSON file.
        kinds: Allowed configuration classes.
    Raises: FileNotFoundError; ValueError for a damaged file, another `model_type` or impossible values.
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
    except Exception as error:  # the strict configurations of transformers raise their own exception types
        raise ValueError(f"{file}: {error}") from error
    if path.is_dir() and isinstance(config, TEXT_CONFIGS) and config.tie_word_embeddings and _has_trained_head(path):
        logger.warning(
            "%s says tie_word_embeddings, but the weights hold an %s that differs from the embeddings; it is kept, and "
            "the model is loaded untied",
            file,
            HEAD,
        )
        config.tie_word_embeddings = False
    return config


def as_speech_config(config: PretrainedConfig) -> MTPConfig:
    """Return a configuration of a speech model as it is, and that of a text model as one without MTP modules."""
    if isinstance(config, MTPConfig):
        return config
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    speech_class = next(kind for kind in SPEECH_CONFIGS if issubclass(kind, type(config)))
    return speech_class(**values)


def _has_trained_head(folder: Path) -> bool:
    """Return whether the weight files hold an output head that differs from the embeddings.

    Merging an adapter into a tied model leaves such files.
    """
    try:
        files = check_weights(folder)
    except FileNotFoundError:  # a configuration alone
        return False
    places = {name: path for path in files for name in read_tensors(path, "meta")}
    if not {HEAD, EMBEDDINGS} <= places.keys():
        return False
    head, embeddings = (read_tensors(places[name])[name] for name in (HEAD, EMBEDDINGS))
    return not torch.equal(head, embeddings.to(head.dtype))


def load_weights(folder: str | Path, config: PretrainedConfig, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """Load the weights of a language model, after checking that the files of its folder are complete.

    Args:
        config: Configuration of the model, which may have parameters that the folder lacks.
        options: More arguments of `from_pretrained`, such as `dtype`, `device_map` and `attn_implementation`.
    Returns: The model, and the names of the parameters that the folder lacks, which are initialised randomly.
    Raises: FileNotFoundError, ValueError naming the missing or damaged file, or the weights that do not fit.
    """
    folder = Path(folder)
    if (folder / GENERATION_FILE).exists():  # transformers would silently ignore a damaged one
        read_json(folder / GENERATION_FILE)
    return load_model(AutoModelForCausalLM, folder, ignored=["missing"], config=config, **options)

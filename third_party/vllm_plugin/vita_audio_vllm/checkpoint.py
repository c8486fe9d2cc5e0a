"""Checks of a checkpoint's config.json that need no vLLM, so that they can be made before the engine starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL_TYPE = "qwen2_mtp"
PLUS_MODEL_TYPE = "qwen2_mtp_sensevoice"  # with continuous input


def read_fields(folder: Path) -> dict[str, Any]:
    """Read the config.json of a model.

    Raises: FileNotFoundError; ValueError if the plug-in cannot serve the model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no config.json in {folder}; give the folder of a model")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        model_type = fields.get("model_type")
        if model_type not in (MODEL_TYPE, PLUS_MODEL_TYPE):
            raise ValueError(f"model_type must be {MODEL_TYPE} or {PLUS_MODEL_TYPE}, got {model_type}")
        check_fields(fields)
        return fields
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: {error}") from error


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for impossible numbers of layers, or what the engine cannot do."""
    layers, modules = fields.get("num_hidden_layers"), fields.get("num_nextn_predict_layers", 0)
    if not isinstance(layers, int) or not isinstance(modules, int) or not 0 <= modules < layers:
        raise ValueError(
            "num_hidden_layers counts backbone layers and MTP modules, so num_nextn_predict_layers must be at least 0 "
            f"and below it, got {modules} of {layers}"
        )
    if fields.get("use_sliding_window"):
        raise ValueError("use_sliding_window must be false in the engine, got true")


def check_drafts(model_type: str, num_modules: int) -> None:
    """Raise ValueError for a model whose modules cannot draft in the engine.

    A prompt of embeddings would end an engine that makes drafts, since it does not know the prompt's tokens.
    """
    if model_type == PLUS_MODEL_TYPE:
        raise ValueError("a model with continuous input has no drafts in the engine; leave --speculative-config out")
    if num_modules == 0:
        raise ValueError("the model has no MTP modules (num_nextn_predict_layers is 0); leave --speculative-config out")

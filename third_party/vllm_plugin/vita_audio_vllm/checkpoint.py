"""Checks of a checkpoint's config.json that need no vLLM, so that they can be made before the engine starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL_TYPE = "qwen2_mtp"


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError if a folder has no config.json of a model that the plug-in can serve."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no config.json in {folder}; give the folder of a model")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if fields.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE}, got {fields.get('model_type')}")
        check_fields(fields)
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

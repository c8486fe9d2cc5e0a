"""Weights of a checkpoint in the shapes of the engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import sqrt

from torch import Tensor
from torch.nn import functional as F

from vita_audio_vllm.config import EngineConfig

LAYER = re.compile(r"model\.layers\.(\d+)\.")
OTHERS = ("model.audio_model.", "model.audio_projection.", "mtp_coordinators.")  # run by the client; for training only
ATTENTION = re.compile(r"\.self_attn\.([qkvo])_proj\.(?:weight|bias)$")

Weights = Iterable[tuple[str, Tensor]]


def module_of(name: str, config: EngineConfig) -> int | None:
    """Return the MTP module that a weight belongs to, from 0; None for a weight of the backbone."""
    if found := re.match(r"mtp_(?:projs|embed_norms|hidden_norms)\.(\d+)\.", name):
        return int(found[1])
    if (found := LAYER.match(name)) and int(found[1]) >= config.num_hidden_layers:
        return int(found[1]) - config.num_hidden_layers
    return None


def backbone_weights(weights: Weights, config: EngineConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the backbone, with heads of the engine's size."""
    for name, weight in weights:
        if module_of(name, config) is None and not name.startswith(OTHERS):
            yield name, fit_heads(name, weight, config)


def fit_heads(name: str, weight: Tensor, config: EngineConfig) -> Tensor:
    """Add zeros to the heads of an attention weight where those of the engine are larger.

    The engine divides scores by the root of its own head size, so the queries are scaled by the ratio of the roots.
    """
    size, engine_size = config.checkpoint_head_dim, config.head_dim
    if size == engine_size or not (found := ATTENTION.search(name)):
        return weight
    padding = engine_size - size
    if found[1] == "o":  # (hidden, heads * size)
        return F.pad(weight.unflatten(1, (-1, size)), (0, padding)).flatten(1)
    if found[1] == "q":
        weight = weight.float() * sqrt(engine_size / size)
    heads = weight.unflatten(0, (-1, size))  # (heads, size, hidden), or (heads, size) for a bias
    return F.pad(heads, (0, 0) * (heads.ndim - 2) + (0, padding)).flatten(0, 1)


def module_weights(weights: Weights, config: EngineConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the MTP modules and of the final norm, which they share with the backbone."""
    for name, weight in weights:
        if module_of(name, config) is not None or name == "model.norm.weight":
            yield name, fit_heads(name, weight, config)

"""Change a loaded model for the next training stage: new MTP modules, a speech encoder, trainable parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from vita_audio.models.mtp_config import MTPConfig
from vita_audio.models.mtp_model import MTPForCausalLM
from vita_audio.models.qwen2_mtp_sensevoice import Qwen2MTPSenseVoiceForCausalLM
from vita_audio.models.sensevoice import read_weights

MODULE_PARTS = ("mtp_projs", "mtp_embed_norms", "mtp_hidden_norms")
COORDINATORS = "mtp_coordinators"


def module_parts(config: MTPConfig) -> tuple[str, ...]:
    """List the parts that each MTP module of a model has besides its layer."""
    return (*MODULE_PARTS, COORDINATORS) if config.mtp_coordinator_weight else MODULE_PARTS


def mtp_parameter_patterns(config: MTPConfig) -> list[str]:
    """List the patterns (for `set_trainable`) of all parameters that belong to MTP modules."""
    patterns = []
    for module in range(config.num_nextn_predict_layers):
        patterns.append(f"model.layers.{config.num_backbone_layers + module}.*")
        patterns += [f"{part}.{module}.*" for part in module_parts(config)]
    return patterns


def match_any(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """List the names that a shell pattern matches as a whole."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def match_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """List the parameters whose whole name matches a shell pattern; both names of a tied parameter count.

    Raises: ValueError if a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not match_any(names, [pattern]):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(f"pattern {pattern!r} matches no parameter; parameters begin with {', '.join(parts)}")
    return match_any(names, patterns)


def set_trainable(model: nn.Module, patterns: Sequence[str], *, frozen: Sequence[str] = ()) -> list[str]:
    """Train the parameters that match a pattern and freeze the others.

    Args:
        patterns: Shell patterns of whole names: `model.layers.3.*` does not match layer 30, `*` matches everything.
        frozen: Patterns of parameters that stay frozen even if they match.
    Returns: Names of the trainable parameters.
    Raises: ValueError if a pattern matches nothing.
    """
    kept = set(match_parameters(model, frozen))
    chosen = [name for name in match_parameters(model, patterns) if name not in kept]
    model.requires_grad_(False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in chosen:
        parameters[name].requires_grad_(True)
    return chosen


@torch.no_grad()
def init_missing_mtp(model: MTPForCausalLM, missing_keys: Iterable[str]) -> list[str]:
    """Initialise MTP modules that a checkpoint lacks, each from the one before it.

    The layer of module k is copied from the layer before it (for module 0, the last backbone layer), its projection,
    norms and coordinator from module k - 1. Projection and coordinator of module 0 are drawn from normal(0,
    initializer_range); its norms are 1.

    Args:
        missing_keys: Names reported by `from_pretrained(..., output_loading_info=True)`.
    Returns: Names of the initialised parameters, sorted.
    Raises: ValueError if something other than an MTP module is missing.
    """
    missing = set(missing_keys)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if foreign := sorted(missing - set(match_any(missing, mtp_parameter_patterns(model.config)))):
        raise ValueError(
            f"only MTP modules can be initialised, but the checkpoint also lacks {', '.join(foreign[:5])} "
            f"({len(foreign)} in all); check that it fits the model config"
        )
    for module in range(model.config.num_nextn_predict_layers):
        for name, source in _sources(model, module):
            if name not in missing:
                continue
            target = parameters[name]
            with gathered([target] + ([parameters[source]] if source else [])):
                if source:
                    target.copy_(parameters[source])
                elif target.ndim == 1:
                    target.fill_(1.0)
                else:
                    target.normal_(0.0, model.config.initializer_range)
    return sorted(missing)


def _sources(model: MTPForCausalLM, module: int) -> Iterator[tuple[str, str | None]]:
    """Yield the names of the parameters of one module, each with the parameter it is copied from."""
    layer = model.config.num_backbone_layers + module
    for name, _ in model.model.layers[layer].named_parameters():
        yield f"model.layers.{layer}.{name}", f"model.layers.{layer - 1}.{name}"
    for part in module_parts(model.config):
        yield f"{part}.{module}.weight", f"{part}.{module - 1}.weight" if module else None


@torch.no_grad()
def load_speech_encoder(model: Qwen2MTPSenseVoiceForCausalLM, folder: str | Path) -> None:
    """Replace the weights of the speech encoder with the weights in a SenseVoiceSmall folder.

    Raises: FileNotFoundError, ValueError for a folder without readable weights, or with weights of another size.
    """
    weights = read_weights(folder)
    parameters = dict(model.model.audio_model.model.named_parameters())
    expected = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in parameters.items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(name for name in expected | shapes if expected.get(name) != shapes.get(name)):
        raise ValueError(
            f"the speech encoder in {folder} does not fit the model config: {wrong[0]} is {shapes.get(wrong[0])}, "
            f"expected {expected.get(wrong[0])} ({len(wrong)} tensors in all); see audio_config in the model config"
        )
    for name, parameter in parameters.items():
        with gathered([parameter]):
            parameter.copy_(weights[name])


@contextlib.contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gather parameters that DeepSpeed ZeRO-3 has partitioned over the ranks, so that they can be modified."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        yield

"""Adapters of peft: folders that hold what was trained on a base, and models that join both.

A folder made by training has `adapter_config.json` and `adapter_model.safetensors` of peft, the configuration of the
whole model, its tokenizer, and `adapter_base.json`: where the base is and how it is recognised. The base may be an
adapter on another base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from vita_audio.files.atomic import write_json
from vita_audio.files.checkpoint import GENERATION_FILE, check_weights, check_whole, find_checkpoint, read_json
from vita_audio.files.tensors import read_tensors
from vita_audio.models import LANGUAGE_CONFIGS, SPEECH_CONFIGS
from vita_audio.models.loading import load_weights, read_config
from vita_audio.models.surgery import init_missing_mtp, match_any, mtp_parameter_patterns
from vita_audio.optional import require

ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
ADAPTER_NAME = "default"  # of the adapter that trains; files do not contain it


def require_peft() -> ModuleType:
    """Import peft. Raises: MissingPackageError."""
    return require("peft", purpose="an adapter", install="'vita-audio[lora]'")


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def fingerprint(folder: Path) -> str:
    """Return a hash of the names, shapes and first rows of all weights in a folder, and of its base if it has one.

    Reading takes a fraction of a second, whatever the size of the model.
    """
    files = check_weights(folder) if not is_adapter(folder) else [folder / ADAPTER_WEIGHTS]
    digest = hashlib.sha256()
    for name, part in sorted(_first_rows(files), key=lambda item: item[0]):
        digest.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
        if not part.is_meta:
            digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    if is_adapter(folder):
        digest.update(str(_read_base(folder).get("fingerprint")).encode())
    return digest.hexdigest()[:16]


def _first_rows(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the first row of every tensor, a vector whole; those of pickled files without values."""
    for path in files:
        if path.suffix != ".safetensors":
            yield from read_tensors(path, "meta").items()
            continue
        check_whole(path)
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                values = file.get_slice(name)
                yield name, values[:1] if len(values.get_shape()) > 1 else file.get_tensor(name)


def describe_base(name_or_path: str | Path) -> dict[str, str]:
    """Return the content of `adapter_base.json` for an adapter on this folder or repository."""
    folder = find_checkpoint(name_or_path)
    is_local = Path(name_or_path).expanduser().is_dir()
    return {"base": str(folder.resolve() if is_local else name_or_path), "fingerprint": fingerprint(folder)}


def save_whole_config(config: PretrainedConfig, base: dict[str, str], folder: Path) -> None:
    """Add to an adapter in a folder what peft does not write: the configuration of the whole model, and its base."""
    config = deepcopy(config)
    vars(config).pop("quantization_config", None)  # of training on a base in 4 bits
    config.save_pretrained(folder)
    write_json(folder / BASE_FILE, base)


def find_base(folder: Path, base: str | Path | None = None, *, offline: bool = False) -> Path:
    """Return the folder of the base of an adapter, after checking that it is the one it was trained on.

    Args:
        base: The base if it is no longer where it was.
    Raises: FileNotFoundError without a base; ValueError for another one.
    """
    stored = _read_base(folder)
    name, remedy = base or stored.get("base"), f"give --model BASE --adapter {folder}"
    if name is None:
        raise FileNotFoundError(f"{folder} is an adapter that does not name its base; {remedy}")
    try:
        found = find_checkpoint(name, offline=offline)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} is an adapter whose base is missing: {error}; or {remedy}") from error
    expected = stored.get("fingerprint")
    if expected is not None and (actual := fingerprint(found)) != expected:
        raise ValueError(
            f"{folder} is an adapter of another base: it was trained on {stored['base']} with weights {expected}, got "
            f"{found} with weights {actual}"
        )
    return found


def _read_base(folder: Path) -> dict[str, str]:
    return read_json(folder / BASE_FILE) if (folder / BASE_FILE).exists() else {}


def load_language_model(
    folder: Path, config: PretrainedConfig, *, base: str | Path | None = None, offline: bool = False, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a language model as `load_weights` does; an adapter is merged into its base.

    Args:
        config: Configuration of the model, which may have more MTP modules than the folder.
        base: Base of the adapter in the folder, if it is no longer where it was.
    Raises: What `load_weights` and `find_base` raise; ValueError if the folder holds no adapter, but a base is given.
    """
    if not is_adapter(folder):
        if base is not None:
            raise ValueError(f"{folder} holds no adapter: {ADAPTER_CONFIG} is missing; give the folder of an adapter")
        return load_weights(folder, config, **options)
    own, base = read_config(folder, SPEECH_CONFIGS), find_base(folder, base, offline=offline)
    shape = deepcopy(config)
    shape.vocab_size = read_config(base, LANGUAGE_CONFIGS).vocab_size
    model, missing = load_language_model(base, shape, offline=offline, **options)
    own_modules = match_any(missing, mtp_parameter_patterns(own))
    init_missing_mtp(model, own_modules)  # copies; what was drawn at random is in the adapter
    if shape.vocab_size != own.vocab_size:
        model.resize_token_embeddings(own.vocab_size, mean_resizing=False)
    return merge_adapter(model, folder), sorted(set(missing) - set(own_modules))


def load_adapter_weights(model: PreTrainedModel, folder: Path) -> None:
    """Fill the adapter of a model with the weights in a folder."""
    state = read_tensors(folder / ADAPTER_WEIGHTS)
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    require_peft().set_peft_model_state_dict(model, state, ADAPTER_NAME)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge the adapter in a folder into a model, which gets its generation config too.

    Raises: ValueError for weights that are damaged or do not fit.
    """
    peft = require_peft()
    check_whole(folder / ADAPTER_CONFIG)
    check_whole(folder / ADAPTER_WEIGHTS)
    try:
        merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the adapter in {folder} does not fit its base: {' '.join(str(error).split())}") from error
    if (folder / GENERATION_FILE).exists():
        read_json(folder / GENERATION_FILE)  # transformers would silently ignore a damaged one
        merged.generation_config = GenerationConfig.from_pretrained(folder)
    merged.config.tie_word_embeddings = merged.lm_head.weight is merged.get_input_embeddings().weight
    return merged

"""Adapters of peft: folders that hold what was trained on a base, and models that join both.

A folder made by training has `adapter_config.json` and `adapter_model.safetensors` of peft, the configuration of the
whole model, its tokenizer, and `adapter_base.json`: where the base is and how it is recognised. The base may be an
adapter on another base.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from vita_audio.files.atomic import write_json
from vita_audio.files.checkpoint import (
    CONFIG_FILE,
    GENERATION_FILE,
    check_weights,
    check_whole,
    find_checkpoint,
    read_json,
)
from vita_audio.files.permissions import restore_permissions
from vita_audio.files.tensors import read_tensors, share_weights
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
    restore_permissions(folder)


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
            _check_adapter(folder)
        return load_weights(folder, config, **options)
    base = find_base(folder, base, offline=offline)
    shape = deepcopy(config)
    shape.vocab_size = read_config(base, LANGUAGE_CONFIGS).vocab_size
    model, missing = load_language_model(base, shape, offline=offline, **options)
    missing = _extend_base(model, folder, missing)
    return merge_adapter(model, folder), missing


def load_on_base(
    folder: Path, config: PretrainedConfig, base: PreTrainedModel, *, offline: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """Load an adapter next to others on a base in memory, without merging it.

    Returns a model of its own that shares the weights of the base; neither of them changes the other. It has copies of
    what the adapter changes outside its low-rank layers: modules that it saves whole, and the tables in which it trains
    rows.

    Args:
        config: Configuration of the model in `folder`.
        base: From `load_language_model`, on one device, not quantized.
    Returns: The model, and the names of the parameters that neither base nor adapter has.
    Raises: What `find_base` and `merge_adapter` raise; ValueError if the folder holds no adapter.
    """
    _check_adapter(folder)
    find_base(folder, base.name_or_path, offline=offline)
    shape = deepcopy(config)
    shape.vocab_size = base.config.vocab_size
    model, missing = share_weights(base, shape, f"the {CONFIG_FILE} of the adapter {folder}")
    model.generation_config = deepcopy(base.generation_config)
    missing = _extend_base(model, folder, missing)
    model = _add_adapter(model, folder, autocast_adapter_dtype=False).get_base_model()
    _replace_wrappers(model)
    return _finished(model, folder), missing


def _check_adapter(folder: Path) -> None:
    if not is_adapter(folder):
        raise ValueError(f"{folder} holds no adapter: {ADAPTER_CONFIG} is missing; give the folder of an adapter")


def _extend_base(model: PreTrainedModel, folder: Path, missing: Sequence[str]) -> list[str]:
    """Give a base the MTP modules and tokens that the adapter in a folder adds; return what is still missing."""
    own = read_config(folder, SPEECH_CONFIGS)
    own_modules = match_any(missing, mtp_parameter_patterns(own))
    init_missing_mtp(model, own_modules)  # copies; what was drawn at random is in the adapter
    if model.config.vocab_size != own.vocab_size:
        model.resize_token_embeddings(own.vocab_size, mean_resizing=False)
    return sorted(set(missing) - set(own_modules))


def _replace_wrappers(model: PreTrainedModel) -> None:
    """Replace modules that peft wraps by what they compute; peft would copy a table in every call of it."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            whole = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            model.set_submodule(name, whole)


def load_adapter_weights(model: PreTrainedModel, folder: Path) -> None:
    """Fill the adapter of a model with the weights in a folder."""
    state = read_tensors(folder / ADAPTER_WEIGHTS)
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    require_peft().set_peft_model_state_dict(model, state, ADAPTER_NAME)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge the adapter in a folder into a model, which gets its generation config too.

    Raises: ValueError for weights that are damaged or do not fit.
    """
    return _finished(_add_adapter(model, folder).merge_and_unload(), folder)


def _add_adapter(model: PreTrainedModel, folder: Path, **options: Any) -> Any:
    """Return a model as peft's `PeftModel`, with the adapter in a folder. Raises: as `merge_adapter`."""
    peft = require_peft()
    check_whole(folder / ADAPTER_CONFIG)
    check_whole(folder / ADAPTER_WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 reads an attribute that transformers renamed
            # read on the CPU, since peft would choose a GPU even for a model on the CPU
            return peft.PeftModel.from_pretrained(model, folder, torch_device="cpu", **options)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the adapter in {folder} does not fit its base: {' '.join(str(error).split())}") from error


def _finished(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a model with the generation config and the name of the adapter's folder."""
    if (folder / GENERATION_FILE).exists():
        read_json(folder / GENERATION_FILE)  # transformers would silently ignore a damaged one
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.config.tie_word_embeddings = model.lm_head.weight is model.get_input_embeddings().weight
    model.name_or_path = str(folder)
    return model

"""Read weight files of several libraries without executing code from them, and fill modules and models with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from vita_audio.files.checkpoint import CONFIG_FILE, check_weights, check_whole, read_json


def find_file(folder: Path, *names: str) -> Path:
    """Return the first of these files that exists in a folder. Raises: FileNotFoundError."""
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no {' or '.join(names)} in {folder}; get the folder again, or give the right one")
    return path


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a `.safetensors` file, or a pickled state dict, possibly under the key `state_dict`.

    Args:
        device: Device of the tensors; "meta" for only shapes and dtypes, without reading the values.
    Raises: FileNotFoundError; ValueError naming the file and the fault.
    """
    check_whole(path)
    try:
        if path.suffix == ".safetensors":
            return {name: value.to(device) for name, value in load_file(path).items()}
        values = torch.load(path, device, weights_only=True)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, not a state dict")
    except Exception as error:  # from pickle, zip or safetensors, which share no base class
        raise ValueError(f"{path} cannot be read as weights: {error}; get it again") from error
    values = values.get("state_dict", values)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def fill_module(module: nn.Module, weights: Mapping[str, Tensor], path: Path, fits: str) -> None:
    """Fill a module, which may be on the meta device, with weights; floating-point weights become float32.

    Args:
        path: File of the weights, for the error message.
        fits: Name of the module, for the error message.
    Raises: ValueError naming the file and its missing, unexpected and misshapen weights.
    """
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    _raise_problems(f"{path} does not fit {fits}", _assign(module, floats))


def _assign(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Collection[str]]:
    """Make weights those of a module, without copying them; return the names that do not fit by kind of problem."""
    expected = module.state_dict()
    misshapen = {name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape}
    fitting = {name: value for name, value in weights.items() if name not in misshapen}
    report = module.load_state_dict(fitting, strict=False, assign=True)
    missing = set(report.missing_keys) - misshapen
    return {"missing": missing, "unexpected": report.unexpected_keys, "of another shape": misshapen}


def load_model(
    kind: type, folder: Path, *, ignored: Collection[str] = (), **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a transformers model, after checking that its files are complete.

    Args:
        kind: Class of the model, or one of transformers' Auto classes.
        ignored: Differences between weights and model that are no errors: "missing", "unexpected".
        options: More arguments of `from_pretrained`.
    Returns: The model, and the sorted names of the parameters that the folder lacks, which are initialised randomly.
    Raises: FileNotFoundError or ValueError naming the file that is missing or damaged, or the weights that do not fit.
    """
    read_json(folder / CONFIG_FILE)
    check_weights(folder)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of missing weights
    try:
        model, report = kind.from_pretrained(
            folder, **{**options, "output_loading_info": True, "ignore_mismatched_sizes": True}
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    shapes = [f"{key} {tuple(found)} instead of {tuple(wanted)}" for key, found, wanted in report["mismatched_keys"]]
    problems = {"missing": report["missing_keys"], "unexpected": report["unexpected_keys"], "of another shape": shapes}
    problems |= {"unreadable": list(map(str, report["error_msgs"]))}
    claim = f"the weights in {folder} do not fit its {CONFIG_FILE}"
    _raise_problems(claim, {key: names for key, names in problems.items() if key not in ignored})
    return model, sorted(report["missing_keys"])


def share_weights(base: PreTrainedModel, config: PretrainedConfig, fits: str) -> tuple[PreTrainedModel, list[str]]:
    """Return another model with the weights of a language model on one device, in the same memory.

    `from_pretrained` with a state dict shares them too, but first allocates the memory of the whole model on a GPU.

    Args:
        config: Configuration of the new model, which may have parameters that the other lacks.
        fits: Name of the configuration, for the error message.
    Returns: The model, and the sorted names of those parameters, whose values are undefined.
    Raises: ValueError for weights that do not fit.
    """
    from accelerate import init_empty_weights

    options = {"dtype": base.dtype, "attn_implementation": base.config._attn_implementation}
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, **options)
    problems = _assign(model, base.state_dict())
    missing = problems.pop("missing")
    _raise_problems(f"the weights of {base.name_or_path} do not fit {fits}", problems)
    for name in missing:
        owner, _, key = name.rpartition(".")
        empty = torch.empty_like(model.get_parameter(name), device=base.device)
        model.get_submodule(owner).register_parameter(key, nn.Parameter(empty))
    model.tie_weights(missing_keys=set(missing))
    return model.to(base.device).eval(), sorted(missing)  # its buffers are on the CPU


def _raise_problems(claim: str, problems: Mapping[str, Collection[str]]) -> None:
    """Raise ValueError with the first names of every kind of problem, unless there are none."""
    found = [f"{kind}: {', '.join(sorted(names)[:5])} ({len(names)})" for kind, names in problems.items() if names]
    if found:
        raise ValueError(f"{claim}: {'; '.join(found)}")

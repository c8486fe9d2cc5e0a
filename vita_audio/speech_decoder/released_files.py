"""Read and write the released files of speech decoders: weights, and `config.yaml` in HyperPyYAML.

Nothing in these files is executed. The released configuration names classes to build (`!new:`), functions to call
(`!apply:`) and values to look up (`!ref`). Here a `!new:` block is read as its arguments, `!ref <name>` as the
top-level value of that name, and calls are skipped.
"""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from vita_audio.files.atomic import write_text
from vita_audio.files.checkpoint import read_yaml
from vita_audio.files.tensors import fill_module, find_file, read_tensors

from .config import DecoderConfig, EncoderConfig, EstimatorConfig, FlowConfig, FlowMatchingConfig, HiFTConfig
from .mel import NUM_BANDS

# The blocks of the file, each after its parent: the class that it names, and the settings that this decoder always has.
# Such a setting may be absent; another value is refused.
_BLOCKS = {
    "flow": ("cosyvoice.flow.flow.MaskedDiffWithXvec", {"output_type": "mel", "only_mask_loss": True}),
    "flow.encoder": (
        "cosyvoice.transformer.encoder.BlockConformerEncoder",
        {
            "normalize_before": True,
            "input_layer": "linear",
            "pos_enc_layer_type": "rel_pos_espnet",
            "selfattention_layer_type": "block_rel_selfattn",
            "use_cnn_module": False,
            "macaron_style": False,
        },
    ),
    "flow.length_regulator": ("cosyvoice.flow.length_regulator.InterpolateRegulator", {"channels": NUM_BANDS}),
    "flow.decoder": (
        "cosyvoice.flow.flow_matching.ConditionalCFM",
        {"in_channels": 3 * NUM_BANDS, "n_spks": 1, "spk_emb_dim": NUM_BANDS},
    ),
    "flow.decoder.cfm_params": ("omegaconf.DictConfig", {}),
    "flow.decoder.cfm_params.content": (None, {"solver": "euler", "reg_loss_type": "l1"}),
    "flow.decoder.estimator": ("cosyvoice.flow.decoder.ConditionalDecoder", {"act_fn": "gelu"}),
    "hift": ("cosyvoice.hifigan.generator.HiFTGenerator", {}),
    "hift.istft_params": (None, {}),
    "hift.f0_predictor": (
        "cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor",
        {"num_class": 1, "in_channels": NUM_BANDS},
    ),
}
_TEMPERATURE = {"inference_temperature": 1.0}  # of the release, whose file has no such key


class _Reference(str):
    """Text after `!ref`, as in `<sample_rate>`."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads any `!tag` as plain data."""


def _construct_tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if suffix == "ref":
        return _Reference(node.value)
    if suffix.startswith("new:") and isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return None


_Loader.add_multi_constructor("!", _construct_tagged)


class _Block(dict):
    """A mapping written with a `!new:` tag, or without one if `tag` is None."""

    def __init__(self, tag: str | None, values: dict[str, Any]):
        super().__init__(values)
        self.tag = f"!new:{tag}" if tag else "tag:yaml.org,2002:map"


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes `_Block` with its tag."""


_Dumper.add_representer(_Block, lambda dumper, block: dumper.represent_mapping(block.tag, dict(block)))
_Dumper.add_representer(tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def read_config(path: str | Path) -> DecoderConfig:
    """Read `config.yaml`.

    Raises: FileNotFoundError; ValueError naming the file and the key that is missing, unknown or unsupported.
    """
    values = read_values(Path(path))
    try:
        return _decoder_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_values(path: Path) -> dict[str, Any]:
    """Read any HyperPyYAML file as plain data: blocks as their arguments, references that are not one name as text.

    Raises: FileNotFoundError; ValueError if the file is not a YAML mapping.
    """
    values = read_yaml(path, _Loader)
    return _resolve(values, values)


def read_fields(kind: type, values: dict[str, Any], where: str) -> Any:
    """Make a configuration dataclass from those `values` that are fields of it; errors name the block `where`."""
    return kind(
        **{
            item.name: _convert(values[item.name], item.type, f"{where}.{item.name}")
            for item in fields(kind)
            if item.name in values
        }
    )


def write_config(config: DecoderConfig, path: str | Path) -> None:
    """Write `config` in the released layout."""
    flow, hift = asdict(config.flow), asdict(config.hift)
    matching = flow.pop("cfm")
    settings = {
        "flow.encoder": flow.pop("encoder"),
        "flow.length_regulator": {"sampling_ratios": flow.pop("sampling_ratios")},
        "flow.decoder.cfm_params.content": {
            name: value for name, value in matching.items() if (name, value) not in _TEMPERATURE.items()
        },
        "flow.decoder.estimator": flow.pop("estimator"),
        "flow": flow,
        "hift.istft_params": {"n_fft": hift.pop("n_fft"), "hop_len": hift.pop("hop_len")},
        "hift.f0_predictor": {"cond_channels": hift.pop("f0_channels")},
        "hift": hift,
    }
    values = {"sample_rate": config.hift.sampling_rate, "spk_embed_dim": config.flow.spk_embed_dim}
    blocks = {"": values}
    for name, (tag, fixed) in _BLOCKS.items():
        parent, _, key = name.rpartition(".")
        blocks[name] = blocks[parent][key] = _Block(tag, settings.get(name, {}) | fixed)
    write_text(Path(path), yaml.dump(values, Dumper=_Dumper, sort_keys=False))


def _resolve(value: Any, names: dict[str, Any]) -> Any:
    """Replace references by the top-level values that they name; other references become their text."""
    if isinstance(value, _Reference):
        found = names.get(value[1:-1])
        is_value = isinstance(found, int | float | str) and not isinstance(found, _Reference)
        return found if is_value else f"!ref {value}"
    if isinstance(value, dict):
        return {key: _resolve(item, names) for key, item in value.items()}
    return [_resolve(item, names) for item in value] if isinstance(value, list) else value


def _decoder_config(values: dict[str, Any]) -> DecoderConfig:
    blocks = {"": values}
    for name, (_, fixed) in _BLOCKS.items():
        parent, _, key = name.rpartition(".")
        block = blocks[name] = blocks[parent].pop(key, None)
        if not isinstance(block, dict):
            raise ValueError(f"the block {name} is missing")
        for setting, supported in fixed.items():
            if (value := block.pop(setting, supported)) != supported:
                raise ValueError(f"{name}.{setting} must be {supported!r}, got {value!r}")
    flow = blocks["flow"] | blocks["flow.length_regulator"]
    flow["encoder"] = _read_block(EncoderConfig, blocks["flow.encoder"], "flow.encoder")
    matching = "flow.decoder.cfm_params.content"
    flow["cfm"] = _read_block(FlowMatchingConfig, _TEMPERATURE | blocks[matching], matching)
    flow["estimator"] = _read_block(EstimatorConfig, blocks["flow.decoder.estimator"], "flow.decoder.estimator")
    hift = blocks["hift"] | blocks["hift.istft_params"]
    hift["f0_channels"] = blocks["hift.f0_predictor"].get("cond_channels")
    return DecoderConfig(_read_block(FlowConfig, flow, "flow"), _read_block(HiFTConfig, hift, "hift"))


def _read_block(kind: type, values: dict[str, Any], where: str) -> Any:
    """Make a configuration dataclass from a value for each of its fields and no others."""
    names = {item.name for item in fields(kind)}
    if missing := sorted(names - values.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"{where} has unknown keys {', '.join(unknown)}")
    return read_fields(kind, values, where)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Convert lists to tuples, and numbers to the type of the field (YAML reads 1e-06 as text)."""
    if isinstance(value, list):
        return tuple(_convert(item, None, where) for item in value)
    try:
        return kind(value) if kind in (int, float) else value
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be a number, got {value!r}") from None


def load_weights(folder: Path, config_name: str, **modules: nn.Module) -> None:
    """Fill each module, on the meta device, with float32 weights from `<its keyword>.safetensors` or `.pt`.

    Raises: FileNotFoundError, or ValueError naming the file and its missing, unexpected or misshapen weights.
    """
    for name, module in modules.items():
        path = find_file(folder, f"{name}.safetensors", f"{name}.pt")
        weights = {_our_name(key): value for key, value in read_tensors(path).items()}
        fill_module(module, weights, path, str(folder / config_name))


def _our_name(name: str) -> str:
    """Undo what CosyVoice's trainers change in a tensor's name: a prefix, and torch's newer weight norm."""
    return re.sub(
        r"parametrizations\.weight\.original([01])$",
        lambda match: f"weight_{'gv'[int(match[1])]}",
        name.removeprefix("generator."),
    )

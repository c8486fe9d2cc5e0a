"""Read and write `config.yaml` in the released (HyperPyYAML) layout without executing anything it names.

The released file names classes to build (`!new:`), functions to call (`!apply:`) and values to look up (`!ref`). Here a
`!new:` block is read as its arguments, `!ref <name>` as the top-level value of that name, and calls are skipped. The
`llm` block, which the speech decoder does not use, is ignored.
"""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from vita_audio.files.atomic import write_text
from vita_audio.files.checkpoint import read_yaml

from .config import DecoderConfig, EncoderConfig, EstimatorConfig, FlowConfig, FlowMatchingConfig, HiFTConfig

# Settings of the released configuration that this decoder always has. Other values are refused.
_FLOW_FIXED = {"output_type": "mel", "only_mask_loss": True}
_ENCODER_FIXED = {
    "normalize_before": True,
    "input_layer": "linear",
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "block_rel_selfattn",
    "use_cnn_module": False,
    "macaron_style": False,
}
_MATCHING_FIXED = {"solver": "euler", "reg_loss_type": "l1"}
_ESTIMATOR_FIXED = {"act_fn": "gelu"}
_F0_FIXED = {"num_class": 1}
RELEASED_TEMPERATURE = 1.0  # the released file has no such key


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
    """A mapping written with a `!new:` tag."""

    def __init__(self, tag: str, values: dict[str, Any]):
        super().__init__(values)
        self.tag = tag


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes `_Block` with its tag."""


_Dumper.add_representer(_Block, lambda dumper, block: dumper.represent_mapping(f"!new:{block.tag}", dict(block)))
_Dumper.add_representer(tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def read_config(path: str | Path) -> DecoderConfig:
    """Read `config.yaml`.

    Raises: FileNotFoundError; ValueError naming the file and the key that is missing, unknown or unsupported.
    """
    values = read_yaml(Path(path), _Loader)
    values.pop("llm", None)
    try:
        return _decoder_config(_resolve(values, values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tagged(path: Path) -> dict[str, Any]:
    """Read any HyperPyYAML file as plain data: blocks as their arguments, references that are not one name as None.

    Raises: FileNotFoundError; ValueError if the file is not a YAML mapping.
    """
    values = read_yaml(path, _Loader)
    return _look_up(values, values)


def write_config(config: DecoderConfig, path: str | Path) -> None:
    """Write `config` in the released layout."""
    flow, hift = asdict(config.flow), asdict(config.hift)
    encoder, matching, estimator = flow.pop("encoder"), flow.pop("cfm"), flow.pop("estimator")
    ratios, bands = flow.pop("sampling_ratios"), config.flow.output_size
    if matching["inference_temperature"] == RELEASED_TEMPERATURE:
        del matching["inference_temperature"]
    flow_block = _Block("cosyvoice.flow.flow.MaskedDiffWithXvec", flow | _FLOW_FIXED)
    flow_block["encoder"] = _Block("cosyvoice.transformer.encoder.BlockConformerEncoder", encoder | _ENCODER_FIXED)
    flow_block["length_regulator"] = _Block(
        "cosyvoice.flow.length_regulator.InterpolateRegulator", {"channels": bands, "sampling_ratios": ratios}
    )
    flow_block["decoder"] = _Block(
        "cosyvoice.flow.flow_matching.ConditionalCFM",
        {
            "in_channels": 3 * bands,
            "n_spks": 1,
            "spk_emb_dim": bands,
            "cfm_params": _Block("omegaconf.DictConfig", {"content": matching | _MATCHING_FIXED}),
            "estimator": _Block("cosyvoice.flow.decoder.ConditionalDecoder", estimator | _ESTIMATOR_FIXED),
        },
    )
    hift["istft_params"] = {"n_fft": hift.pop("n_fft"), "hop_len": hift.pop("hop_len")}
    f0 = {"in_channels": config.hift.in_channels, "cond_channels": hift.pop("f0_channels")} | _F0_FIXED
    hift["f0_predictor"] = _Block("cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor", f0)
    values = {
        "sample_rate": config.hift.sampling_rate,
        "spk_embed_dim": config.flow.spk_embed_dim,
        "flow": flow_block,
        "hift": _Block("cosyvoice.hifigan.generator.HiFTGenerator", hift),
    }
    write_text(Path(path), yaml.dump(values, Dumper=_Dumper, sort_keys=False))


def _look_up(value: Any, names: dict[str, Any]) -> Any:
    """Look up references like `_resolve`, with None for those that are wrong."""
    if isinstance(value, _Reference):
        found = names.get(value[1:-1])
        return found if isinstance(found, int | float | str) and not isinstance(found, _Reference) else None
    if isinstance(value, dict):
        return {key: _look_up(item, names) for key, item in value.items()}
    return [_look_up(item, names) for item in value] if isinstance(value, list) else value


def _resolve(value: Any, names: dict[str, Any]) -> Any:
    if isinstance(value, _Reference):
        name = re.fullmatch(r"<(\w+)>", value)
        if name is None:
            raise ValueError(f"!ref must name one value, as in !ref <sample_rate>, got {str(value)!r}")
        if not isinstance(names.get(name.group(1)), int | float | str):
            raise ValueError(f"!ref {value} names no top-level value")
        return names[name.group(1)]
    if isinstance(value, dict):
        return {key: _resolve(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, names) for item in value]
    return value


def _decoder_config(values: dict[str, Any]) -> DecoderConfig:
    flow, hift = _take_block(values, "flow", ""), _take_block(values, "hift", "")
    regulator, decoder = _take_block(flow, "length_regulator", "flow."), _take_block(flow, "decoder", "flow.")
    if "output_size" not in flow:
        raise ValueError("flow lacks output_size")
    bands = flow["output_size"]
    matching = _take_block(decoder, "cfm_params", "flow.decoder.")
    matching = {"inference_temperature": RELEASED_TEMPERATURE} | matching.get("content", matching)
    estimator = _take_block(decoder, "estimator", "flow.decoder.")
    _check_fixed(decoder, {"n_spks": 1, "in_channels": 3 * bands, "spk_emb_dim": bands}, "flow.decoder")
    _check_fixed(regulator, {"channels": bands}, "flow.length_regulator")
    flow |= regulator
    flow["encoder"] = _build(EncoderConfig, _take_block(flow, "encoder", "flow."), _ENCODER_FIXED, "flow.encoder")
    flow["cfm"] = _build(FlowMatchingConfig, matching, _MATCHING_FIXED, "flow.decoder.cfm_params")
    flow["estimator"] = _build(EstimatorConfig, estimator, _ESTIMATOR_FIXED, "flow.decoder.estimator")
    f0 = _take_block(hift, "f0_predictor", "hift.")
    _check_fixed(f0, _F0_FIXED | {"in_channels": hift.get("in_channels")}, "hift.f0_predictor")
    hift |= _take_block(hift, "istft_params", "hift.")
    hift["f0_channels"] = f0.get("cond_channels")
    return DecoderConfig(_build(FlowConfig, flow, _FLOW_FIXED, "flow"), _build(HiFTConfig, hift, {}, "hift"))


def _take_block(values: dict[str, Any], name: str, prefix: str) -> dict[str, Any]:
    block = values.pop(name, None)
    if not isinstance(block, dict):
        raise ValueError(f"the block {prefix}{name} is missing")
    return dict(block)


def _check_fixed(values: dict[str, Any], fixed: dict[str, Any], where: str) -> None:
    """Remove the keys of `fixed` from `values`, where they may be absent but not different."""
    for name, supported in fixed.items():
        value = values.pop(name, supported)
        if value != supported:
            raise ValueError(f"{where}.{name} must be {supported!r}, got {value!r}")


def _build(kind: type, values: dict[str, Any], fixed: dict[str, Any], where: str) -> Any:
    """Make a configuration dataclass from a value for each of its fields and no others."""
    _check_fixed(values, fixed, where)
    names = {item.name for item in fields(kind)}
    if missing := sorted(names - values.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"{where} has unknown keys {', '.join(unknown)}")
    return kind(**{item.name: _convert(values[item.name], item.type, f"{where}.{item.name}") for item in fields(kind)})


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Convert lists to tuples, and numbers to the type of the field (YAML reads 1e-06 as text)."""
    if isinstance(value, list):
        return tuple(_convert(item, None, where) for item in value)
    try:
        return kind(value) if kind in (int, float) else value
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be a number, got {value!r}") from None

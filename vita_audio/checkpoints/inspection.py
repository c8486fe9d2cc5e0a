"""Inspect a checkpoint folder: its kind, and whether our classes would load its files and weights.

Weights are compared by name and shape, and modules run on tensors without values. Only codecs whose modules come from
third-party packages are loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    WhisperFeatureExtractor,
)

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from vita_audio.files.checkpoint import (
    CONFIG_FILE,
    GENERATION_FILE,
    TORCH_SUFFIXES,
    check_weights,
    check_whole,
    read_json,
    read_yaml,
)
from vita_audio.files.tensors import find_file, read_tensors
from vita_audio.interleave import InterleavePlan
from vita_audio.models import LANGUAGE_CONFIGS, SPEECH_CONFIGS, MTPConfig, Qwen2MTPSenseVoiceConfig
from vita_audio.models.adapters import find_base, is_adapter
from vita_audio.models.loading import as_speech_config, read_config
from vita_audio.models.sensevoice import WEIGHT_FILES, SenseVoiceConfig, SenseVoiceSmall
from vita_audio.models.surgery import match_any, mtp_parameter_patterns
from vita_audio.models.verification import Verification
from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.speech_decoder.released_files import read_config as read_decoder_config
from vita_audio.speech_features import CMVN_FILE, SenseVoiceFrontEnd
from vita_audio.text import TextTokenizer

DECODER_CONFIG = "config.yaml"
CHECKED_SUFFIXES = (".json", ".safetensors", ".txt", ".yaml", ".mvn", *TORCH_SUFFIXES)


@dataclass
class Part:
    """A set of weights compared with its module.

    Attributes:
        files: File name -> bytes.
        parameters: dtype in the files -> number of parameters of the module.
        missing: Tensors of the module that the files lack.
        unexpected: Tensors in the files that the module lacks.
        misshapen: Name -> shape in the files and in the module.
        initialised: Tensors in `missing` that a training stage initialises -> how.
        dry_run: Sizes of the module's input and output in a run without values.
    """

    name: str
    files: dict[str, int]
    num_tensors: int
    parameters: dict[str, int]
    missing: list[str]
    unexpected: list[str]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    initialised: dict[str, str]
    dry_run: str


@dataclass
class Report:
    """Contents of a folder: its kind (a key of `KINDS`, or "unknown"), weights, and reasons why it does not load."""

    folder: str
    kind: str
    title: str
    parts: list[Part] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def num_parameters(self) -> int:
        return sum(sum(part.parameters.values()) for part in self.parts)

    def values(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"fits": not self.problems, "num_parameters": self.num_parameters} | asdict(self)


def inspect_checkpoint(folder: Path, config: Path | None = None) -> Report:
    """Report the kind of a folder and whether it loads.

    Args:
        config: For a language model, the configuration of a training stage that would start from it; weights that the
            stage initialises may then be missing.
    """
    kind = identify(folder)
    report = Report(str(folder), kind, KINDS[kind][0] if kind in KINDS else "no checkpoint of a known kind")
    for path in sorted(folder.iterdir()):
        if path.suffix in CHECKED_SUFFIXES and path.is_file():
            _try(report, check_whole, path)
    if kind not in KINDS:
        names = sorted(path.name for path in folder.iterdir())
        inside = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))]
        hint = f"; look into {', '.join(inside[:3])}" if inside else f"; known kinds are {', '.join(KINDS)}"
        report.problems.append(
            f"{folder} is not a known kind of checkpoint; it holds {', '.join(names[:8]) or 'nothing'}{hint}"
        )
    elif not report.problems:
        _try(report, KINDS[kind][1], folder, report, *([config] if kind in LANGUAGE_MODELS else []))
    return report


def identify(folder: Path) -> str:
    """Return the kind of a folder by its configuration, a key of `KINDS` or "unknown"."""
    try:
        values = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError):
        values = {}
    model_type = values.get("model_type")
    if model_type in LANGUAGE_MODELS:
        return model_type
    if "quantize_vocab_size" in values:
        return "glm-4-voice-tokenizer"
    if "vq_strides" in values:
        return "snac24khz"
    if codec := next((name for name, mark in CODEC_MARKS.items() if (folder / mark).exists()), None):
        return codec
    path = folder / DECODER_CONFIG
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if re.search(r"^flow:", text, re.MULTILINE) and re.search(r"^hift:", text, re.MULTILINE):
        return "glm-4-voice-decoder"
    if "SenseVoiceEncoderSmall" in text or (folder / CMVN_FILE).exists() and not values:
        return "sensevoice-small"
    if not values and any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return "text-tokenizer"
    return "unknown"


def _inspect_language_model(folder: Path, report: Report, config_path: Path | None) -> None:
    own = read_config(folder, LANGUAGE_CONFIGS)
    config = own if config_path is None else read_config(config_path, SPEECH_CONFIGS)
    if config is not own:
        config.vocab_size = own.vocab_size
        report.facts["as the start of"] = str(config_path)
    if is_adapter(folder):
        report.facts["adapter on"] = str(find_base(folder))  # peft compares the weights when it loads them
    else:
        files = check_weights(folder)
        with FakeTensorMode():
            model = AutoModelForCausalLM.from_config(as_speech_config(config), dtype=torch.bfloat16)
            dry_run = _run_language_model(model)
        _compare("model", files, model, report, dry_run, stage=None if config is own else config)
    _inspect_text(folder, own, report)
    _inspect_generation(folder, report)
    if isinstance(config, MTPConfig):
        report.facts["layers"] = f"{config.num_backbone_layers} and {config.num_nextn_predict_layers} MTP modules"
    if getattr(own, "audio_tokenizer", None):
        report.facts["audio codes of"] = own.audio_tokenizer["fingerprint"]


def _stage_initialisation(config: MTPConfig, missing: list[str]) -> dict[str, str]:
    """Return how a training stage initialises each of the missing tensors that it initialises."""
    ways = {
        "as the MTP module or layer before it": mtp_parameter_patterns(config),
        "from the folder in --audio_model_name_or_path": ["model.audio_model.*"],
        "at random": ["model.audio_projection.*"],
    }
    return {name: way for way, patterns in ways.items() for name in match_any(missing, patterns)}


def _run_language_model(model: nn.Module) -> str:
    config, length = model.config, 16
    ids, positions = torch.zeros(1, length, dtype=torch.int64), torch.arange(length)[None]
    masks = dict.fromkeys(config.layer_types)  # causal
    output = model(input_ids=ids, attention_mask=masks, position_ids=positions, use_cache=False, return_dict=True)
    result = f"{length} tokens to logits {tuple(output.logits.shape)}"
    if isinstance(config, Qwen2MTPSenseVoiceConfig):
        features = torch.zeros(10, config.sensevoice.input_size, dtype=model.dtype)
        result = f"{len(features)} rows of features to {len(model.model.encode_audio([features])[0])} places, {result}"
    if config.num_nextn_predict_layers:
        embeds = model.model.embed_tokens(ids)
        depths = [hidden.shape for hidden in model.mtp_chain(embeds, embeds, positions, masks=masks)]
        result += f", {len(depths)} MTP modules"
    return result


def _inspect_text(folder: Path, config: PretrainedConfig, report: Report) -> None:
    tokenizer = TextTokenizer.from_pretrained(folder)
    num_tokens = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))  # ours adds tokens
    report.facts["text"] = f"{num_tokens:,} tokens for {config.vocab_size:,} rows"
    if num_tokens > config.vocab_size:
        report.problems.append(f"the text tokenizer in {folder} has more tokens than the model: {report.facts['text']}")
    if tokenizer.num_audio_codes:
        report.facts["text"] += f", {tokenizer.num_audio_codes:,} audio codes from id {tokenizer.first_audio_id:,}"
    elif isinstance(config, MTPConfig):
        report.problems.append(
            f"the text tokenizer in {folder} has no audio codes; use the one saved with the trained model"
        )


def _inspect_generation(folder: Path, report: Report) -> None:
    if not (folder / GENERATION_FILE).exists():
        report.facts["generation"] = f"no {GENERATION_FILE}: greedy, ends at <|im_end|> or <|endoftext|>"
        return
    config = GenerationConfig.from_pretrained(folder)
    facts = [f"ends at {config.eos_token_id}"]
    if config.do_sample:
        facts.append(f"temperature {config.temperature}, top_k {config.top_k}, top_p {config.top_p}")
    if config.repetition_penalty:
        facts.append(f"repetition penalty {config.repetition_penalty}")
    if mode := getattr(config, "mtp_inference_mode", None):
        facts.append(f"plan {' '.join(map(str, InterleavePlan.parse(mode).ratio))}")
    if (acceptance := getattr(config, "acceptance", None)) is not None:
        try:
            facts.append(f"acceptance {Verification(acceptance).acceptance:g}")
        except ValueError as error:
            report.problems.append(f"{folder / GENERATION_FILE}: {error}")
    report.facts["generation"] = ", ".join(facts)


def _inspect_glm_tokenizer(folder: Path, report: Report) -> None:
    config = read_config(folder, (WhisperVQConfig,))
    files = check_weights(folder)
    with FakeTensorMode():
        encoder = WhisperVQEncoder(config)
        mel = torch.zeros(1, config.num_mel_bins, 10 * config.frames_per_code)
        dry_run = f"{mel.shape[2]} mel frames to {encoder(mel).quantized_token_ids.shape[1]} codes"
    _compare("encoder", files, encoder, report, dry_run)
    check_whole(folder / "preprocessor_config.json")
    tokenizer = GLM4VoiceTokenizer(encoder, WhisperFeatureExtractor.from_pretrained(folder))
    report.facts["codes"] = f"{tokenizer.vocab_size:,}"


def _inspect_glm_decoder(folder: Path, report: Report) -> None:
    config = read_decoder_config(folder / DECODER_CONFIG)
    files = {name: [find_file(folder, f"{name}.safetensors", f"{name}.pt")] for name in ("flow", "hift")}
    with FakeTensorMode():
        flow, hift = MaskedDiffWithXvec(config.flow).eval(), HiFTGenerator(config.hift).eval()
        mel = torch.zeros(1, config.flow.output_size, 40)
        mel = flow.decoder.solve(mel, mel, flow.speaker(None), mel, num_steps=1)
        pitch = f"{mel.shape[2]} mel frames to {hift.predict_f0(mel).shape[1]} of pitch"
    _compare("flow", files["flow"], flow, report, f"one step of the flow for {mel.shape[2]} mel frames")
    _compare("hift", files["hift"], hift, report, pitch)
    report.facts["codes"] = f"{config.flow.vocab_size:,}"


def _inspect_sensevoice(folder: Path, report: Report) -> None:
    settings = read_yaml(folder / DECODER_CONFIG) if (folder / DECODER_CONFIG).is_file() else {}
    names = SenseVoiceConfig.__dataclass_fields__.keys()
    sizes = {name: value for name, value in (settings.get("encoder_conf") or {}).items() if name in names}
    file = find_file(folder, *WEIGHT_FILES)
    with FakeTensorMode():
        module = SenseVoiceSmall(SenseVoiceConfig(**sizes))
        features = torch.zeros(10, module.embed.embedding_dim)
        dry_run = f"{len(features)} rows of features to {len(module([features])[0])} rows"
    _compare("encoder", [file], module, report, dry_run)
    SenseVoiceFrontEnd.from_pretrained(folder)


def _inspect_text_tokenizer(folder: Path, report: Report) -> None:
    tokenizer = TextTokenizer.from_pretrained(folder)
    report.facts["text"] = f"{len(tokenizer):,} tokens with {tokenizer.num_audio_codes:,} audio codes"


def _inspect_codec(name: str, folder: Path, report: Report) -> None:
    """Load a codec whose modules come from an optional package, which raises an error if they do not fit."""
    try:
        tokenizer = get_audio_tokenizer(name, folder, folder)
    except ImportError as error:
        report.facts["weights"] = f"not compared: {error}"
        return
    report.facts |= {"codes": f"{tokenizer.vocab_size:,}", "fingerprint": tokenizer.fingerprint}


LANGUAGE_MODELS = {
    "qwen2": "plain Qwen2 text model, from which stage 1 starts",
    "qwen3": "plain Qwen3 text model, from which stage 1 starts",
    "llama": "plain Llama text model, from which stage 1 starts",
    "qwen2_mtp": "VITA-Audio speech model",
    "qwen3_mtp": "VITA-Audio speech model on Qwen3",
    "llama_mtp": "VITA-Audio speech model on Llama",
    "qwen2_mtp_sensevoice": "VITA-Audio-Plus speech model, with a SenseVoice encoder for its input",
}
CODECS = {"cosyvoice2": "CosyVoice 2 codec", "snac24khz": "SNAC codec at 24 kHz", "sparktts": "Spark-TTS codec"}
CODEC_MARKS = {"cosyvoice2": "cosyvoice2.yaml", "sparktts": "BiCodec"}  # codec -> file or folder that identifies it
KINDS: dict[str, tuple[str, Callable[..., None]]] = {  # kind -> title, and the function that completes a report
    **{name: (title, _inspect_language_model) for name, title in LANGUAGE_MODELS.items()},
    "glm-4-voice-tokenizer": ("GLM-4-Voice speech tokenizer", _inspect_glm_tokenizer),
    "glm-4-voice-decoder": ("GLM-4-Voice speech decoder", _inspect_glm_decoder),
    "sensevoice-small": ("SenseVoiceSmall speech encoder", _inspect_sensevoice),
    **{name: (title, partial(_inspect_codec, name)) for name, title in CODECS.items()},
    "text-tokenizer": ("text tokenizer without a model", _inspect_text_tokenizer),
}


def _compare(
    name: str,
    files: list[Path],
    module: nn.Module,
    report: Report,
    dry_run: str,
    *,
    stage: MTPConfig | None = None,
) -> None:
    """Compare weight files with a module, by names and shapes, and report the result and that of the dry run.

    Args:
        stage: Configuration of a training stage that would start from the weights.
    """
    stored = {key: value for path in files for key, value in read_tensors(path, "meta").items()}
    expected = module.state_dict(keep_vars=True)
    shapes, found = ({key: tuple(value.shape) for key, value in tensors.items()} for tensors in (expected, stored))
    present = {id(value) for key, value in expected.items() if key in stored}  # tied tensors need one of their names
    common = sorted(shapes.keys() & stored.keys())
    parameters = Counter()
    for key in common:
        parameters[str(stored[key].dtype).removeprefix("torch.")] += expected[key].numel()
    missing = sorted(key for key, value in expected.items() if id(value) not in present)
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    unexpected = (key for key in stored.keys() - shapes.keys() if not any(re.search(each, key) for each in ignored))
    part = Part(
        name,
        {path.name: path.stat().st_size for path in files},
        num_tensors=len(stored),
        parameters=dict(parameters),
        missing=missing,
        unexpected=sorted(unexpected),
        misshapen={key: (found[key], shapes[key]) for key in common if found[key] != shapes[key]},
        initialised=_stage_initialisation(stage, missing) if stage else {},
        dry_run=dry_run,
    )
    report.parts.append(part)
    shapes = [f"{key} {found} instead of {wanted}" for key, (found, wanted) in part.misshapen.items()]
    for keys, fault in (
        ([key for key in missing if key not in part.initialised], "are missing and would start at random"),
        (part.unexpected, "have no place in the module"),
        (shapes, "have another shape"),
    ):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            report.problems.append(f"{name}: {len(keys)} tensors {fault}: {', '.join(keys[:5])}{more}")


def _try(report: Report, action: Callable[..., Any], *arguments: Any) -> None:
    """Run a step and report its error, if any."""
    try:
        action(*arguments)
    except (ValueError, OSError, RuntimeError) as error:
        report.problems.append(" ".join(str(error).split()))

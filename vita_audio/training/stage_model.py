"""The model of a training stage: configuration, weights, speech encoder, and the parameters that train."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.utils import is_flash_attn_2_available

from vita_audio.audio_tokenizers.base import check_identity
from vita_audio.constants import structural_tokens
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.models import (
    LANGUAGE_CONFIGS,
    TEXT_CONFIGS,
    MTPConfig,
    MTPForCausalLM,
    Qwen2MTPSenseVoiceConfig,
)
from vita_audio.models.adapters import is_adapter, load_language_model
from vita_audio.models.loading import as_speech_config, read_config
from vita_audio.models.qwen2_mtp_sensevoice import AUDIO_ENCODER, AUDIO_PROJECTION
from vita_audio.models.surgery import (
    gathered,
    init_missing_mtp,
    load_speech_encoder,
    mtp_parameter_patterns,
    set_trainable,
)
from vita_audio.text import TextTokenizer
from vita_audio.training.arguments import VOCALNET
from vita_audio.training.settings import StageSettings
from vita_audio.training.stage_adapter import add_adapter, four_bit_options

logger = logging.getLogger(__name__)

# Configuration fields that may differ from the checkpoint's; all others decide what its weights compute. `_computed_by`
# compares the layers; the switches of the sliding window show in `sliding_window` and `layer_types`.
MAY_CHANGE = frozenset(
    ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "audio_tokenizer")
    + ("num_hidden_layers", "num_nextn_predict_layers", "use_sliding_window", "max_window_layers")
    + (
        "mtp_loss_weight",
        "mtp_kl_weight",
        "mtp_depth_weights",
        "mtp_coordinator_weight",
        "alignment_weight",
        "attention_dropout",
        "initializer_range",
        "max_position_embeddings",
    )
)
# Sampling defaults of the released models.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}


@contextmanager
def whole_models(training_arguments: TrainingArguments) -> Iterator[None]:
    """Disable DeepSpeed ZeRO-3, which partitions models over the processes, while loading models that do not train."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if training_arguments.deepspeed:
            set_hf_deepspeed_config(training_arguments.hf_deepspeed_config)


def read_stage_config(path: str | Path) -> MTPConfig:
    """Read a model configuration, folder or file; that of a text model becomes one without MTP modules.

    Raises: FileNotFoundError; ValueError for another kind of model.
    """
    return as_speech_config(read_config(path, LANGUAGE_CONFIGS))


def check_configs(config: MTPConfig, checkpoint: MTPConfig, names: tuple[str, str]) -> None:
    """Check that the configuration of the model to train fits the checkpoint to start from; it may add MTP modules.

    Args:
        names: Names of the configuration and the checkpoint for the message.
    Raises: ValueError that lists the fields that differ, with both values.
    """
    ours, theirs = (_computed_by(each, checkpoint.num_hidden_layers) for each in (config, checkpoint))
    if isinstance(checkpoint, Qwen2MTPSenseVoiceConfig):
        ours["speech encoder"], theirs["speech encoder"] = getattr(config, "sensevoice", None), checkpoint.sensevoice
    wrong = [
        f"{name} is {theirs.get(name)} in the checkpoint, {ours.get(name)} in the configuration"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if config.num_nextn_predict_layers < checkpoint.num_nextn_predict_layers:
        wrong.append(
            f"the checkpoint has {checkpoint.num_nextn_predict_layers} MTP modules, the configuration only "
            f"{config.num_nextn_predict_layers}"
        )
    if wrong:
        raise ValueError(f"configuration {names[0]} does not fit checkpoint {names[1]}: {'; '.join(wrong)}")


def _computed_by(config: MTPConfig, num_layers: int) -> dict[str, Any]:
    """Return the fields that decide what the weights of the first `num_layers` layers compute."""
    text_class = next(kind for kind in TEXT_CONFIGS if isinstance(config, kind))
    names = {item.name for item in fields(text_class)} - {item.name for item in fields(PretrainedConfig)}
    values = {name: getattr(config, name) for name in names - MAY_CHANGE} | {"text model": text_class.model_type}
    values["layer_types"] = {
        layer: kind for layer, kind in enumerate(config.layer_types[:num_layers]) if kind != "full_attention"
    }
    values["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values["number of backbone layers"] = config.num_backbone_layers
    if config.rope_parameters.get("rope_type", "default") != "default":  # other types scale positions by this value
        values["max_position_embeddings"] = config.max_position_embeddings
    return values


def load_stage_model(
    settings: StageSettings, tokenizer: TextTokenizer, audio_tokenizer: dict[str, str] | None = None
) -> MTPForCausalLM:
    """Load the model of a stage with new MTP modules initialised; only trained parameters require gradients.

    Args:
        tokenizer: Text tokenizer; a model that starts from a text model gets embeddings for its new tokens.
        audio_tokenizer: `AudioTokenizer.identity`, stored in the configuration.
    Raises: FileNotFoundError; ValueError if a file is damaged, or if configuration, checkpoint, tokenizers and pack
        length do not fit each other.
    """
    folder = find_checkpoint(settings.model_name_or_path) if settings.model_name_or_path else None
    base = read_config(folder, LANGUAGE_CONFIGS) if folder else None
    config = _stage_config(settings, tokenizer, folder, base, audio_tokenizer)
    attention = resolve_attention(settings.attn_implementation)
    options = {"dtype": settings.dtype, "attn_implementation": attention}
    if folder is None:
        model = AutoModelForCausalLM.from_config(config, **options)
        _prepare_speech_encoder(model, dict(model.named_parameters()), settings)
    else:
        _check_base(settings, folder, config.num_nextn_predict_layers - as_speech_config(base).num_nextn_predict_layers)
        if settings.lora and settings.lora.qlora:
            options |= four_bit_options()
        model, missing = load_language_model(folder, config, **options)
        missing = init_missing_mtp(model, _prepare_speech_encoder(model, missing, settings))
        if missing:
            logger.info("initialised %d tensors of MTP modules that %s lacks", len(missing), folder)
        if not isinstance(base, MTPConfig):
            add_tokens(model, tokenizer, settings.seed)
    if settings.lora is None:
        choose_trained(model, settings)
    else:
        first, is_new = num_text_tokens(tokenizer), not isinstance(base, MTPConfig)
        rows = range(first, model.config.vocab_size) if is_new or not settings.language_model_freeze else ()
        torch.manual_seed(settings.seed)  # loading under ZeRO-3 has drawn other numbers
        add_adapter(model, settings.lora, token_ids=rows, new=missing, frozen=settings.language_model_freeze)
    trained = [getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad]
    logger.info("%d parameters in %d tensors train", sum(trained), len(trained))
    verified = {} if settings.mtp_acceptance is None else {"acceptance": settings.mtp_acceptance}
    model.generation_config = GenerationConfig(
        **SAMPLING,
        **verified,
        eos_token_id=[tokenizer.im_end_id, tokenizer.pad_id],
        pad_token_id=tokenizer.pad_id,
        mtp_inference_mode=list(settings.plan.ratio),
    )
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.im_end_id, tokenizer.pad_id
    model.config.audio_tokenizer = audio_tokenizer
    return model


def _check_base(settings: StageSettings, folder: Path, num_new_modules: int) -> None:
    """Check that a stage can start from a folder under ZeRO-3, and with a base in 4 bits. Raises: ValueError."""
    qlora, zero3 = settings.lora is not None and settings.lora.qlora, is_deepspeed_zero3_enabled()
    if is_adapter(folder) and (qlora or zero3):
        raise ValueError(
            f"a stage {'with qlora' if qlora else 'under ZeRO-3'} cannot start from an adapter, got {folder}; merge it "
            f"with python tools/export_checkpoint.py {folder} MERGED --merge"
        )
    if qlora and zero3:
        raise ValueError("--lora: qlora does not work under ZeRO-3; use ZeRO-2")
    if qlora and num_new_modules:
        raise ValueError(
            f"--lora: qlora needs a base with all MTP modules, {folder} lacks {num_new_modules}; leave it out in the "
            "stages that add them"
        )


def _stage_config(
    settings: StageSettings,
    tokenizer: TextTokenizer,
    folder: Path | None,
    base: PretrainedConfig | None,
    audio_tokenizer: Mapping[str, str] | None,
) -> MTPConfig:
    """Return the configuration of the model, checked against tokenizers and the checkpoint in `folder`, if any."""
    config = read_stage_config(settings.config_name) if settings.config_name else as_speech_config(base)
    apply_settings(config, settings)
    _check_speech_input(config, tokenizer, settings)
    if base is None:
        config.vocab_size = tokenizer.padded_size
        return config
    checkpoint = as_speech_config(base)
    check_configs(config, checkpoint, (settings.config_name or str(folder), str(folder)))
    if checkpoint.audio_tokenizer and audio_tokenizer:
        check_identity(checkpoint.audio_tokenizer, audio_tokenizer, folder)
    if checkpoint is base and base.vocab_size != tokenizer.padded_size:
        raise ValueError(
            f"checkpoint {folder} has a vocabulary of {base.vocab_size}, text and audio tokenizer make "
            f"{tokenizer.padded_size}; use the tokenizers it was trained with"
        )
    config.vocab_size = base.vocab_size
    return config


def apply_settings(config: MTPConfig, settings: StageSettings) -> None:
    """Set the fields that flags override. Raises: ValueError for settings that the model cannot be trained with."""
    if settings.model_max_length > config.max_position_embeddings:
        raise ValueError(
            f"--model_max_length {settings.model_max_length} exceeds the positions of the model, "
            f"max_position_embeddings {config.max_position_embeddings}"
        )
    for name in ("mtp_loss_weight", "mtp_kl_weight", "mtp_coordinator_weight", "alignment_weight"):
        if getattr(settings, name) is not None:
            setattr(config, name, getattr(settings, name))
    if settings.mtp_depth_weights is not None:
        config.mtp_depth_weights = depth_weights(settings.mtp_depth_weights, config.num_nextn_predict_layers)
    if settings.language_model_freeze and not config.num_nextn_predict_layers:
        raise ValueError("--language_model_freeze needs MTP modules, the model config has none; set --config_name")


def depth_weights(weights: Sequence[str], num_modules: int) -> list[float]:
    """Return the factor of each module's loss from the value of --mtp_depth_weights.

    Raises: ValueError if their number is not that of the modules.
    Source: VocalNet (arXiv 2504.04060) multiplies the loss of depth k by 0.8 to the power of k.
    """
    if list(weights) == [VOCALNET]:
        return [0.8**depth for depth in range(1, num_modules + 1)]
    if len(weights) != num_modules:
        raise ValueError(
            f"--mtp_depth_weights needs {num_modules} numbers, one per MTP module, got {' '.join(weights)}"
        )
    return [float(weight) for weight in weights]


def num_text_tokens(tokenizer: TextTokenizer) -> int:
    """Return the number of tokens before those that speech adds."""
    return tokenizer.base.convert_tokens_to_ids(structural_tokens()[0])


def choose_trained(model: MTPForCausalLM, settings: StageSettings) -> None:
    """Let only the parameters that a stage trains require gradients."""
    patterns = mtp_parameter_patterns(model.config) if settings.language_model_freeze else ["*"]
    frozen = []
    if isinstance(model.config, Qwen2MTPSenseVoiceConfig):  # its CTC head is not used
        frozen = [f"{AUDIO_ENCODER}.*" if settings.audio_model_freeze else f"{AUDIO_ENCODER}.model.ctc.*"]
    set_trainable(model, patterns, frozen=frozen)


def resolve_attention(name: str) -> str:
    """Return the attention back end; `auto` is flash attention if it is installed and a GPU is available, else sdpa."""
    if name != "auto":
        return name
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


@torch.no_grad()
def add_tokens(model: MTPForCausalLM, tokenizer: TextTokenizer, seed: int) -> None:
    """Add embeddings and output rows for the tokens that a plain text model lacks.

    New rows are drawn from a normal distribution with the mean and standard deviation of the text rows in each
    dimension, so that thousands of audio codes differ from the start. Rows after the text vocabulary of the checkpoint
    (padding in the released Qwen2.5) are replaced too.

    Raises: ValueError if the model has fewer rows than the text vocabulary.
    """
    num_text = num_text_tokens(tokenizer)
    if model.config.vocab_size < num_text:
        raise ValueError(
            f"the text tokenizer has {num_text} text tokens, the model only {model.config.vocab_size}; "
            "use the tokenizer of the model"
        )
    model.resize_token_embeddings(tokenizer.padded_size, mean_resizing=False)
    tables = [model.get_input_embeddings().weight]
    if model.get_output_embeddings().weight is not tables[0]:
        tables.append(model.get_output_embeddings().weight)
    generator = torch.Generator().manual_seed(seed)
    for table in tables:  # (vocabulary, hidden)
        with gathered([table]):
            text = table[:num_text].float()
            noise = torch.randn(table[num_text:].shape, generator=generator).to(table.device)
            table[num_text:] = (text.mean(0) + noise * text.std(0)).to(table.dtype)


def _check_speech_input(config: MTPConfig, tokenizer: TextTokenizer, settings: StageSettings) -> None:
    """Check that model, tokenizer and flags agree on continuous speech input. Raises: ValueError."""
    has_encoder, roles = isinstance(config, Qwen2MTPSenseVoiceConfig), tokenizer.continuous_roles
    if roles and not has_encoder:
        raise ValueError(
            f"audio of {', '.join(roles)} is continuous input, but the model ({config.model_type}) has no speech "
            f"encoder; set --config_name to a {Qwen2MTPSenseVoiceConfig.model_type} one, or --audio_tokenizer_type to "
            "one without sensevoice_"
        )
    if has_encoder and not roles:
        raise ValueError(
            "the model has a speech encoder, but no role has continuous input; set --audio_tokenizer_type to "
            "one with sensevoice_, or --audio_input"
        )
    if not has_encoder and (settings.audio_model_freeze or settings.audio_model_name_or_path):
        raise ValueError(
            f"--audio_model_freeze and --audio_model_name_or_path need a model with a speech encoder, got "
            f"{config.model_type}; leave them out or set --config_name"
        )


def _prepare_speech_encoder(model: MTPForCausalLM, missing: Iterable[str], settings: StageSettings) -> set[str]:
    """Load the speech encoder, and return the `missing` parameters that belong neither to it nor to its projection.

    Raises: FileNotFoundError; ValueError for a folder whose weights do not fit, or if no folder has an encoder.
    """
    missing = set(missing)
    if settings.lora and (settings.audio_model_name_or_path or any(AUDIO_PROJECTION in name for name in missing)):
        raise ValueError(
            "--lora cannot add a speech encoder, which the base of an adapter must have; train the first stage with "
            "continuous input without --lora"
        )
    encoder = {name for name in missing if name.startswith(f"{AUDIO_ENCODER}.")}
    projection = {name for name in missing if name.startswith(f"{AUDIO_PROJECTION}.")}
    if settings.audio_model_name_or_path:
        folder = find_checkpoint(settings.audio_model_name_or_path)
        load_speech_encoder(model, folder)
        logger.info("speech encoder from %s", folder)
    elif encoder:
        raise ValueError(
            f"the checkpoint lacks the speech encoder ({len(encoder)} tensors such as {min(encoder)}); give "
            "--audio_model_name_or_path, the folder of a SenseVoiceSmall"
        )
    if projection:
        logger.info("the projection of the speech encoder starts at random")
    return missing - encoder - projection

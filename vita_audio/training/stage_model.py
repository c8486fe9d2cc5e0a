"""The model of a training stage: configuration, weights, and the parameters that train."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, Qwen2Config, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.utils import is_flash_attn_2_available

from vita_audio.audio_tokenizers.identity import check_audio_tokenizer
from vita_audio.constants import structural_tokens
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.interleave import InterleavePlan
from vita_audio.models import SPEECH_CONFIGS, Qwen2MTPConfig, Qwen2MTPForCausalLM, Qwen2MTPSenseVoiceConfig
from vita_audio.models.loading import load_weights, read_config
from vita_audio.models.surgery import gathered, init_missing_mtp, mtp_parameter_patterns, set_trainable
from vita_audio.text import TextTokenizer
from vita_audio.training.settings import StageSettings
from vita_audio.training.speech_input import check_speech_input, frozen_speech_patterns, prepare_speech_encoder

logger = logging.getLogger(__name__)

# Configuration fields that may differ from the checkpoint's. All other fields decide what its weights compute. Those of
# layers are compared by `_computed_by`; the sliding window's switches show in `sliding_window` and `layer_types`.
MAY_CHANGE = frozenset(
    ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "audio_tokenizer")
    + ("num_hidden_layers", "num_nextn_predict_layers", "use_sliding_window", "max_window_layers")
    + ("mtp_loss_weight", "mtp_kl_weight", "attention_dropout", "initializer_range", "max_position_embeddings")
)
# Sampling defaults of the released models.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}


@contextmanager
def whole_models(training_arguments: TrainingArguments) -> Iterator[None]:
    """Load models that do not train without DeepSpeed ZeRO-3, which would partition them over the processes."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if training_arguments.deepspeed:
            set_hf_deepspeed_config(training_arguments.hf_deepspeed_config)


def read_stage_config(path: str | Path) -> Qwen2MTPConfig:
    """Read a model configuration, folder or file; a plain Qwen2 configuration becomes one without MTP modules.

    Raises: FileNotFoundError; ValueError for another kind of model.
    """
    return _as_speech_config(read_config(path, (Qwen2Config, *SPEECH_CONFIGS)))


def _as_speech_config(config: Qwen2Config) -> Qwen2MTPConfig:
    if isinstance(config, Qwen2MTPConfig):
        return config
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    return Qwen2MTPConfig(**values)


def check_configs(config: Qwen2MTPConfig, checkpoint: Qwen2MTPConfig, names: tuple[str, str]) -> None:
    """Check that a configuration computes what the checkpoint to start from computes; it may add MTP modules.

    Args:
        config: Configuration of the model to train.
        checkpoint: Configuration of the checkpoint.
        names: Names of both for the message.
    Raises: ValueError that lists the fields that differ, with their value in the checkpoint and in the configuration.
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


def _computed_by(config: Qwen2MTPConfig, num_layers: int) -> dict[str, Any]:
    """Return the fields that decide what the weights of the first `num_layers` layers compute."""
    names = {item.name for item in fields(Qwen2MTPConfig)} - {item.name for item in fields(PretrainedConfig)}
    values = {name: getattr(config, name) for name in names - MAY_CHANGE}
    values["layer_types"] = {
        layer: kind for layer, kind in enumerate(config.layer_types[:num_layers]) if kind != "full_attention"
    }
    values["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values["number of backbone layers"] = config.num_backbone_layers
    if config.rope_parameters.get("rope_type", "default") != "default":  # other types scale positions by it
        values["max_position_embeddings"] = config.max_position_embeddings
    return values


def load_stage_model(
    settings: StageSettings, tokenizer: TextTokenizer, audio_tokenizer: dict[str, str] | None = None
) -> Qwen2MTPForCausalLM:
    """Load the model of a stage, with its new MTP modules initialised and only what trains requiring gradients.

    Args:
        settings: Settings of the stage.
        tokenizer: Text tokenizer; a model that starts from plain Qwen2 gets embeddings for its new tokens.
        audio_tokenizer: Description of the tokenizer that makes the codes, see `audio_tokenizers.identity`; it is
            stored in the model's configuration.
    Raises: FileNotFoundError; ValueError if a file is damaged, or if configuration, checkpoint, tokenizers and pack
        length do not fit each other.
    """
    folder = find_checkpoint(settings.model_name_or_path) if settings.model_name_or_path else None
    base = read_config(folder, (Qwen2Config, *SPEECH_CONFIGS)) if folder else None
    config = _stage_config(settings, tokenizer, folder, base, audio_tokenizer)
    model = _load_stage_weights(settings, folder, config)
    if base is not None and not isinstance(base, Qwen2MTPConfig):
        add_tokens(model, tokenizer, settings.seed)
    _choose_trained(model, settings)
    model.generation_config = generation_config(settings.plan, tokenizer)
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.im_end_id, tokenizer.pad_id
    model.config.audio_tokenizer = audio_tokenizer
    return model


def _stage_config(
    settings: StageSettings,
    tokenizer: TextTokenizer,
    folder: Path | None,
    base: Qwen2Config | None,
    audio_tokenizer: Mapping[str, str] | None,
) -> Qwen2MTPConfig:
    """Return the configuration of the model to load, checked against tokenizers and checkpoint.

    Args:
        folder: Checkpoint to start from; None for random weights.
        base: Its configuration, of plain Qwen2 or of a speech model.
    """
    config = read_stage_config(settings.config_name) if settings.config_name else _as_speech_config(base)
    if settings.model_max_length > config.max_position_embeddings:
        raise ValueError(
            f"--model_max_length {settings.model_max_length} exceeds the positions the model knows, "
            f"max_position_embeddings {config.max_position_embeddings}"
        )
    for name in ("mtp_loss_weight", "mtp_kl_weight"):
        if getattr(settings, name) is not None:
            setattr(config, name, getattr(settings, name))
    if settings.language_model_freeze and not config.num_nextn_predict_layers:
        raise ValueError("--language_model_freeze needs MTP modules, the model config has none; set --config_name")
    check_speech_input(config, tokenizer, settings)
    if base is None:
        config.vocab_size = tokenizer.padded_size
        return config
    checkpoint = _as_speech_config(base)
    check_configs(config, checkpoint, (settings.config_name or str(folder), str(folder)))
    if checkpoint.audio_tokenizer and audio_tokenizer:
        check_audio_tokenizer(checkpoint.audio_tokenizer, audio_tokenizer, folder)
    if checkpoint is base and base.vocab_size != tokenizer.padded_size:
        raise ValueError(
            f"checkpoint {folder} has a vocabulary of {base.vocab_size}, text and audio tokenizer make "
            f"{tokenizer.padded_size}; use the tokenizers it was trained with"
        )
    config.vocab_size = base.vocab_size
    return config


def _load_stage_weights(settings: StageSettings, folder: Path | None, config: Qwen2MTPConfig) -> Qwen2MTPForCausalLM:
    """Load the checkpoint, if any, and the speech encoder; initialise MTP modules that the checkpoint lacks."""
    options = {"dtype": settings.dtype, "attn_implementation": resolve_attention(settings.attn_implementation)}
    if folder is None:
        model = AutoModelForCausalLM.from_config(config, **options)
        prepare_speech_encoder(model, dict(model.named_parameters()), settings)
        return model
    model, missing = load_weights(AutoModelForCausalLM, folder, config, **options)
    initialised = init_missing_mtp(model, prepare_speech_encoder(model, missing, settings))
    if initialised:
        logger.info("initialised %d tensors of MTP modules that %s lacks", len(initialised), folder)
    return model


def _choose_trained(model: Qwen2MTPForCausalLM, settings: StageSettings) -> None:
    patterns = mtp_parameter_patterns(model.config) if settings.language_model_freeze else ["*"]
    trained = set_trainable(model, patterns, frozen=frozen_speech_patterns(model.config, settings))
    num_trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    logger.info("%d parameters in %d tensors train", num_trained, len(trained))


def resolve_attention(name: str) -> str:
    """Return the attention back end; `auto` is flash attention if it is installed and a GPU is available, else sdpa."""
    if name != "auto":
        return name
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


@torch.no_grad()
def add_tokens(model: Qwen2MTPForCausalLM, tokenizer: TextTokenizer, seed: int) -> None:
    """Add embeddings and output rows for the tokens that a plain text model lacks.

    New rows are drawn from a normal distribution with the mean and standard deviation, per dimension, of the text rows:
    they have the same scale and differ from each other, which thousands of audio codes need from the first step on.
    Rows of the checkpoint after its text vocabulary (padding, in the released Qwen2.5) are replaced too.

    Raises: ValueError if the model has fewer rows than the text vocabulary.
    """
    num_text = tokenizer.base.convert_tokens_to_ids(structural_tokens()[0])
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
    for table in tables:
        with gathered([table]):
            _draw_rows(table, num_text, generator)


def _draw_rows(table: nn.Parameter, num_text: int, generator: torch.Generator) -> None:
    """Replace the rows after the first `num_text` of a (vocabulary, hidden) table by rows drawn like those."""
    text = table[:num_text].float()
    noise = torch.randn(table[num_text:].shape, generator=generator).to(table.device)
    table[num_text:] = (text.mean(0) + noise * text.std(0)).to(table.dtype)


def generation_config(plan: InterleavePlan, tokenizer: TextTokenizer) -> GenerationConfig:
    """Return the generation defaults of the released models, with the plan the model is trained for."""
    return GenerationConfig(
        **SAMPLING,
        eos_token_id=[tokenizer.im_end_id, tokenizer.pad_id],
        pad_token_id=tokenizer.pad_id,
        mtp_inference_mode=list(plan.ratio),
    )

"""The model a training stage starts from: a checkpoint of the stage before, with what this stage adds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.utils import is_flash_attn_2_available

from vita_audio.audio_tokenizers.identity import check_audio_tokenizer
from vita_audio.constants import structural_tokens
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.interleave import InterleavePlan
from vita_audio.models import SPEECH_CONFIGS, Qwen2MTPConfig, Qwen2MTPForCausalLM
from vita_audio.models.loading import load_weights, read_config
from vita_audio.models.surgery import gathered, init_missing_mtp, mtp_parameter_patterns, set_trainable
from vita_audio.text import TextTokenizer
from vita_audio.training.arguments import ModelArguments
from vita_audio.training.speech_input import check_speech_input, frozen_speech_patterns, prepare_speech_encoder

logger = logging.getLogger(__name__)

# What a config and a checkpoint must agree on for the weights to mean the same.
SHARED_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
)
# Sampling of the released models.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}


@contextmanager
def whole_models(training_arguments: TrainingArguments) -> Iterator[None]:
    """Load models that do not train as they are, where DeepSpeed ZeRO-3 would split them over the processes."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if training_arguments.deepspeed:
            set_hf_deepspeed_config(training_arguments.hf_deepspeed_config)


def read_stage_config(path: str | Path) -> Qwen2MTPConfig:
    """Read a model config, folder or file; that of a plain Qwen2 becomes one without MTP modules.

    Raises: FileNotFoundError; ValueError for another kind of model.
    """
    config = read_config(path, (Qwen2Config, *SPEECH_CONFIGS))
    if isinstance(config, Qwen2MTPConfig):
        return config
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    return Qwen2MTPConfig(**values)


def is_plain_qwen2(path: str | Path) -> bool:
    return type(read_config(path, (Qwen2Config, *SPEECH_CONFIGS))) is Qwen2Config


def check_configs(config: Qwen2MTPConfig, checkpoint: Qwen2MTPConfig, names: tuple[str, str]) -> None:
    """Check that a config fits the checkpoint to start from; it may add MTP modules.

    Raises: ValueError that lists what differs.
    """
    settings = {key: (getattr(config, key), getattr(checkpoint, key)) for key in SHARED_SETTINGS}
    settings["number of backbone layers"] = (config.num_backbone_layers, checkpoint.num_backbone_layers)
    encoders = [getattr(each, "sensevoice", None) for each in (config, checkpoint)]
    if encoders[1] is not None:
        settings["speech encoder"] = tuple(encoders)
    wrong = [f"{key} {ours} != {theirs}" for key, (ours, theirs) in settings.items() if ours != theirs]
    if config.num_nextn_predict_layers < checkpoint.num_nextn_predict_layers:
        wrong.append(f"MTP modules {config.num_nextn_predict_layers} < {checkpoint.num_nextn_predict_layers}")
    if wrong:
        raise ValueError(f"config {names[0]} does not fit checkpoint {names[1]}: {'; '.join(wrong)}")


def load_stage_model(
    arguments: ModelArguments,
    tokenizer: TextTokenizer,
    *,
    dtype: torch.dtype,
    seed: int,
    audio_tokenizer: dict[str, str] | None = None,
) -> Qwen2MTPForCausalLM:
    """Load the model of a stage, ready to train: vocabulary, new MTP modules, what trains, generation defaults.

    Args:
        tokenizer: Text tokenizer with the audio codes.
        dtype: Of the weights.
        seed: For the embeddings of new tokens.
        audio_tokenizer: Description of what makes the codes, see `audio_tokenizers.identity`; the model remembers it.
    Raises: FileNotFoundError; ValueError if a file is damaged, or if config, checkpoint, tokenizers and pack length do
        not fit each other.
    """
    name = arguments.model_name_or_path and find_checkpoint(arguments.model_name_or_path)
    config = read_stage_config(arguments.config_name or name)
    if arguments.model_max_length > config.max_position_embeddings:
        raise ValueError(
            f"--model_max_length {arguments.model_max_length} exceeds the positions the model knows, "
            f"max_position_embeddings {config.max_position_embeddings}"
        )
    for weight in ("mtp_loss_weight", "mtp_kl_weight"):
        if getattr(arguments, weight) is not None:
            setattr(config, weight, getattr(arguments, weight))
    if arguments.language_model_freeze and not config.num_nextn_predict_layers:
        raise ValueError("--language_model_freeze needs MTP modules, the model config has none; set --config_name")
    check_speech_input(config, tokenizer, arguments)
    attention = resolve_attention(arguments.attn_implementation)
    if name is None:
        config.vocab_size = tokenizer.padded_size
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        prepare_speech_encoder(model, dict(model.named_parameters()), arguments)
    else:
        checkpoint = read_stage_config(name)
        check_configs(config, checkpoint, (arguments.config_name or name, name))
        if checkpoint.audio_tokenizer and audio_tokenizer:
            check_audio_tokenizer(checkpoint.audio_tokenizer, audio_tokenizer, name)
        config.vocab_size = checkpoint.vocab_size
        model = _load_checkpoint(name, config, arguments, tokenizer, dtype=dtype, attn_implementation=attention)
        if is_plain_qwen2(name):
            add_tokens(model, tokenizer, seed)
    patterns = mtp_parameter_patterns(config) if arguments.language_model_freeze else ["*"]
    trained = set_trainable(model, patterns, frozen=frozen_speech_patterns(config, arguments))
    num_trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    logger.info("%d parameters in %d tensors train", num_trained, len(trained))
    model.generation_config = generation_config(arguments.plan, tokenizer)
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.im_end_id, tokenizer.pad_id
    model.config.audio_tokenizer = audio_tokenizer
    return model


def _load_checkpoint(
    folder: Path, config: Qwen2MTPConfig, arguments: ModelArguments, tokenizer: TextTokenizer, **options
) -> Qwen2MTPForCausalLM:
    if not is_plain_qwen2(folder) and config.vocab_size != tokenizer.padded_size:
        raise ValueError(
            f"checkpoint {folder} has a vocabulary of {config.vocab_size}, text and audio tokenizer make "
            f"{tokenizer.padded_size}; use the tokenizers it was trained with"
        )
    model, missing = load_weights(AutoModelForCausalLM, folder, config, **options)
    initialised = init_missing_mtp(model, prepare_speech_encoder(model, missing, arguments))
    if initialised:
        logger.info("initialised %d tensors of MTP modules that %s lacks", len(initialised), folder)
    return model


def resolve_attention(name: str) -> str:
    """Return the attention back end that `auto` means here: flash attention if it is installed and there is a GPU."""
    if name != "auto":
        return name
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


@torch.no_grad()
def add_tokens(model: Qwen2MTPForCausalLM, tokenizer: TextTokenizer, seed: int) -> None:
    """Give the tokens that a plain text model lacks embeddings and output rows.

    New rows are drawn from a normal distribution with mean and standard deviation, per dimension, of the text rows:
    of their scale, and different from each other, which thousands of audio codes need from the first step on. Rows of
    the checkpoint beyond its text vocabulary (padding, in the released Qwen2.5) are replaced too.

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
    """Draw the rows after the first `num_text` of a (vocabulary, hidden) table like those."""
    text = table[:num_text].float()
    noise = torch.randn(table[num_text:].shape, generator=generator).to(table.device)
    table[num_text:] = (text.mean(0) + noise * text.std(0)).to(table.dtype)


def generation_config(plan: InterleavePlan, tokenizer: TextTokenizer) -> GenerationConfig:
    """Return the generation defaults of the released models, with the plan the model was trained for."""
    return GenerationConfig(
        **SAMPLING,
        eos_token_id=[tokenizer.im_end_id, tokenizer.pad_id],
        pad_token_id=tokenizer.pad_id,
        mtp_inference_mode=list(plan.ratio),
    )

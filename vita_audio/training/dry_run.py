"""What a stage would do, from its flags alone: what trains, memory, steps, tokens and time. No weights, GPU or data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from vita_audio.audio_tokenizers import get_audio_tokenizer, is_continuous
from vita_audio.audio_tokenizers.glm4voice import EMBEDDED
from vita_audio.constants import CONTINUOUS_PREFIX, structural_tokens
from vita_audio.files.checkpoint import find_checkpoint, read_json
from vita_audio.models import LANGUAGE_CONFIGS, MTPConfig, MTPForCausalLM
from vita_audio.models.loading import as_speech_config, read_config
from vita_audio.models.surgery import module_parts
from vita_audio.text import CONTINUOUS_INPUT, DISCRETE, DISCRETE_INPUT, TextTokenizer, padded
from vita_audio.training.arguments import DataArguments, ModelArguments, SpeechOptions
from vita_audio.training.memory import (
    BFLOAT16,
    FLOAT32,
    activation_bytes,
    empty_model,
    loss_bytes,
    step_memory,
)
from vita_audio.training.parts import PARTS, TITLES, parameter_parts
from vita_audio.training.settings import StageSettings, stage_settings
from vita_audio.training.stage_adapter import add_adapter
from vita_audio.training.stage_model import (
    apply_settings,
    check_configs,
    choose_trained,
    read_stage_config,
)

GIB = 2**30
ZERO_STAGES = (None, 0, 1, 2, 3)
SECONDS_PER_DAY = 24 * 3600
FILES = ("*.json", "*.txt", "tokenizer.model")  # of a model on the hub: its configuration and tokenizer
RELEASED_CODES = {"glm4voice": 16384, "cosyvoice2": 6561, "snac24khz": 7 * 4096, "sparktts": 8192}
RELEASED_TEXT_TOKENS = {Qwen2Config: 151_665, Qwen3Config: 151_669, LlamaConfig: 128_256}  # Qwen2.5, 3, Llama 3.2


def dry_run(flags: tuple[ModelArguments, DataArguments, SpeechOptions]) -> str:
    """Return a description of the stage that the flags define.

    Args:
        flags: Result of `parse_flags`; the last part also has the flags of TrainingArguments.
    Raises: FileNotFoundError; ValueError for flags that do not fit each other or the configurations.
    """
    settings, options = stage_settings(*flags), flags[2]
    config, base = _configs(settings)
    model = empty_model(config, torch.bfloat16 if options.bf16 else torch.float32)
    if settings.lora is None:
        choose_trained(model, settings)
    else:
        _adapt(model, settings, base)
    parts = [_parameter_table(model), _memory_table(model, settings, options), _schedule(settings, options)]
    return "\n\n".join([*parts, *_assumptions(settings, config, base)])


def _configs(settings: StageSettings) -> tuple[MTPConfig, MTPConfig | None]:
    """Return the configuration of the model, and that of the checkpoint it starts from, if that is there."""
    base, name = None, settings.model_name_or_path
    if name and (Path(name).exists() or not settings.config_name):
        base = read_config(find_checkpoint(name, files=FILES), LANGUAGE_CONFIGS)
    config = read_stage_config(settings.config_name) if settings.config_name else as_speech_config(base)
    if base is not None:
        check_configs(config, as_speech_config(base), (settings.config_name or name, name))
    if isinstance(base, MTPConfig):
        config.vocab_size = base.vocab_size
    elif base is not None or Path(settings.tokenizer_name).exists():
        config.vocab_size = _vocabulary(settings)
    else:
        config.vocab_size = _released_vocabulary(settings, config)
    apply_settings(config, settings)
    return config, base and as_speech_config(base)


def _adapt(model: MTPForCausalLM, settings: StageSettings, base: MTPConfig | None) -> None:
    """Add the adapter; without a checkpoint, all modules that a stage trains alone count as new."""
    num_modules, num_old = model.config.num_nextn_predict_layers, 0
    if base is not None or not settings.language_model_freeze:
        num_old = (base or model.config).num_nextn_predict_layers
    parts = module_parts(model.config)
    new = [f"{part}.{module}.weight" for part in parts for module in range(num_old, num_modules)]
    num_rows = model.config.vocab_size
    rows = range(num_rows - _num_codes(settings) - len(structural_tokens()), num_rows)
    with torch.device("meta"):
        frozen = settings.language_model_freeze
        add_adapter(model, settings.lora, token_ids=() if frozen else rows, new=new, frozen=frozen)


def _num_codes(settings: StageSettings) -> int:
    """Return the number of audio codes; an audio tokenizer that is not there counts as the released one."""
    if _has_audio_tokenizer(settings):
        return get_audio_tokenizer(settings.audio_tokenizer_type, settings.audio_tokenizer_path).vocab_size
    return RELEASED_CODES[settings.audio_tokenizer_type.removeprefix(CONTINUOUS_PREFIX)]


def _has_audio_tokenizer(settings: StageSettings) -> bool:
    path = settings.audio_tokenizer_path
    return path in (None, EMBEDDED) or Path(path).exists()


def _vocabulary(settings: StageSettings) -> int:
    """Return the rows of the embeddings that training makes for the tokenizers."""
    return TextTokenizer.from_pretrained(
        find_checkpoint(settings.tokenizer_name, files=FILES),
        _num_codes(settings),
        continuous_input=is_continuous(settings.audio_tokenizer_type),
        audio_input=settings.audio_input,
    ).padded_size


def _released_vocabulary(settings: StageSettings, config: MTPConfig) -> int:
    """Return the rows for the released text tokenizer; a configuration with fewer rows has another one, and its own."""
    num_text = _released_text_tokens(config)
    if config.vocab_size < num_text:
        return config.vocab_size
    input_by_role = CONTINUOUS_INPUT if is_continuous(settings.audio_tokenizer_type) else DISCRETE_INPUT
    hears = any(how != DISCRETE for how in {**input_by_role, **settings.audio_input}.values())
    return padded(num_text + len(structural_tokens(continuous_input=hears)) + _num_codes(settings))


def _released_text_tokens(config: MTPConfig) -> int:
    return next(number for kind, number in RELEASED_TEXT_TOKENS.items() if isinstance(config, kind))


def _assumptions(settings: StageSettings, config: MTPConfig, base: MTPConfig | None) -> list[str]:
    """Say what was assumed for tokenizers that are not there."""
    lines = []
    if base is None and not Path(settings.tokenizer_name).exists():
        num_text = _released_text_tokens(config)
        is_released = config.vocab_size >= num_text
        tokens = f"released one's {num_text}" if is_released else f"configuration's {config.vocab_size}"
        lines.append(f"text tokenizer {settings.tokenizer_name} is not a local folder; assumed: the {tokens} tokens")
    if not _has_audio_tokenizer(settings):
        path, number = settings.audio_tokenizer_path, _num_codes(settings)
        lines.append(f"audio tokenizer {path} is not a local folder; assumed: the released one's {number} codes")
    return ["\n".join(lines)] if lines else []


def _parameter_table(model: PreTrainedModel) -> str:
    parts, totals, trained = parameter_parts(model), Counter(), Counter()
    for name, parameter in model.named_parameters():
        totals[parts[name]] += parameter.numel()
        trained[parts[name]] += parameter.numel() * parameter.requires_grad
    rows = [(TITLES[part], _millions(totals[part]), _millions(trained[part])) for part in PARTS if totals[part]]
    rows.append(("total", _millions(totals.total()), _millions(trained.total())))
    return _table(("parameters, millions", "all", "trained"), rows)


def _memory_table(model: PreTrainedModel, settings: StageSettings, options: SpeechOptions) -> str:
    """Describe the memory for every ZeRO stage; an arrow marks the one of the DeepSpeed configuration."""
    deepspeed = read_json(Path(options.deepspeed)).get("zero_optimization", {}) if options.deepspeed else {}
    used = deepspeed.get("stage", 0) if options.deepspeed else None
    shape = options.per_device_train_batch_size, settings.model_max_length
    activations, layer = activation_bytes(model, *shape, checkpointing=options.gradient_checkpointing)
    working = max(loss_bytes(model, *shape, BFLOAT16 if options.bf16 else FLOAT32), layer)
    rows = []
    for zero in ZERO_STAGES:
        memory = step_memory(
            model,
            activations,
            working,
            zero=zero,
            bf16=options.bf16,
            num_gpus=options.num_gpus,
            deepspeed=deepspeed,
        )
        name = "no DeepSpeed" if zero is None else f"ZeRO {zero}"
        sizes = [f"{size / GIB:.1f}" for size in (*vars(memory).values(), memory.total)]
        rows.append((name + (" <-" if zero == used else ""), *sizes))
    header = ("GiB on each GPU", "weights", "gradients", "optimizer", "buffers", "activations", "working", "total")
    kind = "bfloat16" if options.bf16 else "float32"
    checkpointing = "gradient checkpointing" if options.gradient_checkpointing else "no gradient checkpointing"
    lines = [
        _table(header, rows),
        f"{options.num_gpus} GPUs, {shape[0]} x {shape[1]} tokens each, {kind}, {checkpointing}; not counted: the CUDA "
        "context, communication and fragmentation (some GiB), and the audio of continuous input",
    ]
    moved = [
        part for part in ("optimizer", "param") if deepspeed.get(f"offload_{part}", {}).get("device", "none") != "none"
    ]
    if moved:
        lines.append(f"{options.deepspeed} keeps {' and '.join(moved)} in the memory of the CPU: subtract that column")
    return "\n".join(lines)


def _schedule(settings: StageSettings, options: SpeechOptions) -> str:
    batch = options.num_gpus * options.per_device_train_batch_size * options.gradient_accumulation_steps
    tokens = batch * settings.model_max_length
    lines = [f"{batch} packs, up to {tokens:,} tokens, in a step"]
    if options.max_steps <= 0:
        return lines[0] + f"; {options.num_train_epochs:g} epochs, whose steps are known when the data is packed"
    lines.append(f"{options.max_steps:,} steps, up to {options.max_steps * tokens / 1e9:.2f} billion tokens")
    if options.tokens_per_second:
        days = options.max_steps * tokens / options.tokens_per_second / SECONDS_PER_DAY
        lines.append(f"{days:.2f} days at {options.tokens_per_second:g} tokens/s of all GPUs together")
    else:
        lines.append("--tokens_per_second, the speed of all GPUs together, gives the days")
    return "\n".join(lines)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns of equal width, the first one aligned to the left."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )

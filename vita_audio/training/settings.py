"""The settings from which a training stage makes its data and its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from transformers import TrainingArguments

from vita_audio.interleave import MODES, InterleavePlan
from vita_audio.training.arguments import DataArguments, ModelArguments
from vita_audio.training.curriculum import LengthCurriculum
from vita_audio.training.lora import LoraSettings


@dataclass(frozen=True)
class StageSettings:
    """Settings that determine the packs a stage reads and the model it trains.

    Fields with the name of a flag hold its value, see `arguments`; these are resolved:

    Attributes:
        audio_code_dir: Folder of the audio codes.
        pack_cache_dir: Folder that caches packed data.
        tokenizer_name: Folder or hub name of the text tokenizer.
        audio_input: How the audio of each role enters the model, see `TextTokenizer`.
        plan: Layout of text and audio in answers.
        dtype: Type of the weights.
        curriculum: Lengths of the packs in the first steps; None for whole packs.
        lora: Adapter that trains in place of the weights; None: the weights train.
    """

    dataset_name: str
    audio_code_dir: Path
    pack_cache_dir: Path
    tokenizer_name: str
    model_name_or_path: str | None = None
    config_name: str | None = None
    audio_tokenizer_type: str = "glm4voice"
    audio_tokenizer_path: str | None = None
    audio_input: Mapping[str, str] = field(default_factory=dict)
    audio_model_name_or_path: str | None = None
    audio_model_freeze: bool = False
    language_model_freeze: bool = False
    plan: InterleavePlan = InterleavePlan(MODES["boost"])
    model_max_length: int = 4096
    user_audio_loss_weight: float = 0.0
    mtp_loss_weight: float | None = None
    mtp_kl_weight: float | None = None
    mtp_acceptance: float | None = None
    attn_implementation: str = "auto"
    dtype: torch.dtype = torch.float32
    seed: int = 42
    mtp_depth_weights: Sequence[str] | None = None
    mtp_coordinator_weight: float | None = None
    alignment_weight: float | None = None
    extract_codes: bool = False
    preprocessing_num_workers: int = 0
    curriculum: LengthCurriculum | None = None
    lora: LoraSettings | None = None


def stage_settings(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> StageSettings:
    """Make the settings of a stage from its flags."""
    output_dir = Path(training.output_dir)
    resolved = {
        "audio_code_dir": Path(data.audio_code_dir or output_dir / "audio_codes"),
        "pack_cache_dir": Path(data.pack_cache_dir or output_dir / "packs"),
        "tokenizer_name": model.tokenizer_name or model.model_name_or_path,
        "audio_input": model.input_by_role,
        "dtype": weight_dtype(training),
        "seed": training.seed,
        "lora": model.lora_settings,
    }
    curriculum = LengthCurriculum(data.curriculum_length, model.model_max_length, data.curriculum_ratio)
    resolved["curriculum"] = curriculum if data.curriculum_length else None
    values = vars(model) | vars(data) | resolved
    return StageSettings(**{item.name: values[item.name] for item in fields(StageSettings)})


def weight_dtype(training: TrainingArguments) -> torch.dtype:
    """Return the type of the weights: bfloat16 only for a bfloat16 run under DeepSpeed, which keeps a float32 copy."""
    return torch.bfloat16 if training.bf16 and training.deepspeed else torch.float32

"""The values from which a training stage makes its data and its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from vita_audio.interleave import MODES, InterleavePlan
from vita_audio.text import parse_audio_input
from vita_audio.training.arguments import DataArguments, ModelArguments


@dataclass(frozen=True)
class StageSettings:
    """Everything that decides which packs a stage reads and which model it trains.

    Attributes:
        data: Data yaml.
        code_dir: Folder of the audio codes.
        pack_dir: Folder that caches packed data.
        text_tokenizer: Folder or hub name.
        checkpoint: Folder or hub name of the model to start from; None for random weights.
        config: Model configuration, a JSON file or folder; None for the checkpoint's.
        audio_tokenizer_type: Name of the audio tokenizer, see `vita_audio.audio_tokenizers`.
        audio_tokenizer_path: Its weights; None for the embedded ones.
        audio_input: For some roles, how their audio enters the model, see `TextTokenizer`.
        speech_encoder: Folder or hub name of a SenseVoiceSmall; None for the checkpoint's encoder.
        freeze_speech_encoder: Whether the speech encoder keeps its weights.
        freeze_language_model: Whether only the MTP modules train.
        plan: Layout of text and audio in answers.
        max_length: Tokens in a pack.
        user_audio_loss_weight: Loss weight of the codes of user speech.
        mtp_loss_weight: Replaces the value in the model configuration; None keeps it.
        mtp_kl_weight: Replaces the value in the model configuration; None keeps it.
        attention: Attention back end, or `auto`.
        dtype: Type in which the weights are loaded.
        seed: Seed for the choice of data rows and for new embeddings.
        extract_codes: Whether audio without codes is encoded first.
        num_workers: Processes that pack the data; 0 for none besides the main one.
    """

    data: Path
    code_dir: Path
    pack_dir: Path
    text_tokenizer: str
    checkpoint: str | None = None
    config: str | None = None
    audio_tokenizer_type: str = "glm4voice"
    audio_tokenizer_path: str | None = None
    audio_input: Mapping[str, str] = field(default_factory=dict)
    speech_encoder: str | None = None
    freeze_speech_encoder: bool = False
    freeze_language_model: bool = False
    plan: InterleavePlan = InterleavePlan(MODES["boost"])
    max_length: int = 4096
    user_audio_loss_weight: float = 0.0
    mtp_loss_weight: float | None = None
    mtp_kl_weight: float | None = None
    attention: str = "auto"
    dtype: torch.dtype = torch.float32
    seed: int = 42
    extract_codes: bool = False
    num_workers: int = 0


def stage_settings(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> StageSettings:
    """Make the settings of a stage from its flags.

    Weights are bfloat16 only for a bfloat16 run under DeepSpeed, which keeps a float32 copy of them.

    Raises: ValueError for an `audio_input` that is not a list of pairs.
    """
    output_dir = Path(training.output_dir)
    return StageSettings(
        data=Path(data.dataset_name),
        code_dir=Path(data.audio_code_dir or output_dir / "audio_codes"),
        pack_dir=Path(data.pack_cache_dir or output_dir / "packs"),
        text_tokenizer=model.tokenizer_name or model.model_name_or_path,
        checkpoint=model.model_name_or_path,
        config=model.config_name,
        audio_tokenizer_type=model.audio_tokenizer_type,
        audio_tokenizer_path=model.audio_tokenizer_path,
        audio_input=parse_audio_input(model.audio_input or ()),
        speech_encoder=model.audio_model_name_or_path,
        freeze_speech_encoder=model.audio_model_freeze,
        freeze_language_model=model.language_model_freeze,
        plan=model.plan,
        max_length=model.model_max_length,
        user_audio_loss_weight=data.user_audio_loss_weight,
        mtp_loss_weight=model.mtp_loss_weight,
        mtp_kl_weight=model.mtp_kl_weight,
        attention=model.attn_implementation,
        dtype=torch.bfloat16 if training.bf16 and training.deepspeed else torch.float32,
        seed=training.seed,
        extract_codes=data.extract_codes,
        num_workers=data.preprocessing_num_workers,
    )

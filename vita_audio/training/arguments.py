"""Command-line fields of the training program. Names follow VITA-Audio and transformers where they exist there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from vita_audio.interleave import MODES, InterleavePlan
from vita_audio.text import parse_audio_input


def option(help: str, default: object = None) -> object:
    """Make a dataclass field with its line of help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str | None = option(
        "Checkpoint to start from, Qwen2 or of an earlier stage; none: random weights"
    )
    config_name: str | None = option("Model config (json file or folder); default: that of the checkpoint")
    tokenizer_name: str | None = option("Text tokenizer; default: that of the checkpoint")
    audio_tokenizer_type: str = option(
        "Name of the audio tokenizer; with sensevoice_ before it, audio of user and system is continuous input",
        "glm4voice",
    )
    audio_tokenizer_path: str | None = option("Its weights; default: the small ones in this package")
    audio_input: list[str] | None = option(
        "How audio of a role is read, such as user=both: discrete, continuous, or both; default: as the checkpoint's "
        "tokenizer says, or else as the type of the audio tokenizer"
    )
    audio_model_name_or_path: str | None = option(
        "Folder of a SenseVoiceSmall to take the speech encoder from; default: that of the checkpoint"
    )
    audio_model_freeze: bool = option("Do not train the speech encoder", False)
    text_audio_interval_ratio: list[int] = option(
        "Text tokens, audio tokens, text tokens, ...; the last pair repeats", list(MODES["boost"])
    )
    language_model_freeze: bool = option("Train the MTP modules only", False)
    mtp_loss_weight: float | None = option("Factor of the mean MTP loss; default: that of the model config")
    mtp_kl_weight: float | None = option(
        "Factor of the mean divergence of the MTP modules from the backbone; default: that of the model config"
    )
    model_max_length: int = option("Tokens in a pack", 4096)
    attn_implementation: str = option("eager, sdpa, flash_attention_2; auto: the fastest that works here", "auto")

    def __post_init__(self):
        if not (self.model_name_or_path or self.config_name):
            raise ValueError("training needs --model_name_or_path (a checkpoint) or --config_name (random weights)")
        if not (self.tokenizer_name or self.model_name_or_path):
            raise ValueError("random weights need --tokenizer_name")
        if self.model_max_length < 2:
            raise ValueError(f"--model_max_length must be at least 2, got {self.model_max_length}")
        for name in ("mtp_loss_weight", "mtp_kl_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < inf:
                raise ValueError(f"--{name} must be 0 or more, got {value}")
        self.plan = InterleavePlan.parse(self.text_audio_interval_ratio).check_data()
        self.audio_input_roles = parse_audio_input(self.audio_input or ())


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset_name: str | None = option("Data yaml")
    audio_code_dir: str | None = option(
        "Folder of audio codes, see tools/extract_audio_codes.py; default: OUTPUT_DIR/audio_codes"
    )
    pack_cache_dir: str | None = option("Folder that keeps packed data; default: OUTPUT_DIR/packs")
    extract_codes: bool = option("Encode audio that has no codes yet before training", False)
    preprocessing_num_workers: int = option("Processes that pack the data; 0: the main one", 0)
    user_audio_loss_weight: float = option("Also learn the codes of user speech, with this loss weight", 0.0)
    audio_code_noise: float = option("Share of audio codes that are read as random ones, against overfitting", 0.0)

    def __post_init__(self):
        if self.dataset_name is None:
            raise ValueError("--dataset_name (a data yaml) is missing")
        if not Path(self.dataset_name).is_file():
            raise FileNotFoundError(f"--dataset_name: no such data yaml: {self.dataset_name}")
        if self.user_audio_loss_weight < 0:
            raise ValueError(f"--user_audio_loss_weight must be 0 or more, got {self.user_audio_loss_weight}")
        if not 0 <= self.audio_code_noise < 1:
            raise ValueError(f"--audio_code_noise must be in [0, 1), got {self.audio_code_noise}")


@dataclass
class SpeechTrainingArguments(TrainingArguments):
    """TrainingArguments of transformers and what speech training adds."""

    output_dir: str | None = option("Folder of the result; a run continues from the last checkpoint in it")
    overwrite_output_dir: bool = option(
        "Start anew in a used folder; checkpoints of earlier runs in it are deleted", False
    )
    mtp_model_lr_mult: float = option("Learning rate of the MTP modules, as a multiple of --learning_rate", 1.0)
    log_main_loss: int = option("Steps from one measurement of a frozen backbone's loss to the next", 10)
    remove_unused_columns: bool = option("Leave columns out of the packs that the model does not take", False)
    report_to: str = option("Where else to send the log (tensorboard, ...)", "none")
    eval_suite: list[str] | None = option("Evaluate every checkpoint on suites of evaluation/run.py, such as demo")
    eval_corpus: str | None = option("Folder of tools/demo/make_corpus.py, for the demo suite")
    eval_data: str | None = option("Folder of evaluation/prepare.py, for the public sets")
    eval_limit: int = option("Samples of each benchmark", 20)
    eval_minutes: float = option("Longest time of one evaluation; what takes longer has failed", 60.0)
    eval_options: list[str] | None = option("More options of evaluation/run.py as NAME=VALUE, such as modes=vanilla")
    ddp_timeout: int = option("Seconds that processes wait for the one that prepares the data", 6 * 3600)

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("--output_dir is missing")
        if self.mtp_model_lr_mult <= 0:
            raise ValueError(f"--mtp_model_lr_mult must be positive, got {self.mtp_model_lr_mult}")
        if self.log_main_loss < 1:
            raise ValueError(f"--log_main_loss must be at least 1, got {self.log_main_loss}")
        super().__post_init__()
        if self.eval_suite:
            self._check_evaluation()

    def _check_evaluation(self) -> None:
        if self.save_strategy == SaveStrategy.NO:
            raise ValueError("--eval_suite evaluates checkpoints, which --save_strategy no does not write")
        if not 0 < 60 * self.eval_minutes < self.ddp_timeout:
            raise ValueError(
                "--eval_minutes must be above 0 and shorter than --ddp_timeout, for which other processes wait "
                f"({self.ddp_timeout / 60:g} minutes), got {self.eval_minutes:g}"
            )
        if wrong := [entry for entry in self.eval_options or () if not all(entry.partition("="))]:
            raise ValueError(f"--eval_options must be NAME=VALUE, got {' '.join(wrong)}")


Arguments = tuple[ModelArguments, DataArguments, SpeechTrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse flags, or the one JSON file whose keys are flag names.

    Raises: ValueError, FileNotFoundError for values that cannot be; SystemExit for unknown flags.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser((ModelArguments, DataArguments, SpeechTrainingArguments), allow_abbrev=False)
    if len(argv) == 1 and argv[0].endswith(".json"):
        return parser.parse_json_file(argv[0])
    return parser.parse_args_into_dataclasses(argv)


def argument_values(arguments: Arguments, *, changed_only: bool = False) -> dict[str, Any]:
    """Return the values of all fields as JSON values, or of those only that differ from their default."""
    values = {}
    for part in arguments:
        plain = part.to_dict() if isinstance(part, TrainingArguments) else vars(part)  # to_dict hides access tokens
        for item in fields(part):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if item.name in plain and not (changed_only and getattr(part, item.name) == default):
                values[item.name] = plain[item.name]
    return json.loads(json.dumps(values, default=str))

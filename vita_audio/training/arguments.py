"""The flags of the training program, with the names of VITA-Audio and transformers where these have the flag.

This module imports quickly; `parse_arguments` imports torch only after the flags have passed a first check.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import HfArgumentParser

from vita_audio.interleave import MODES, InterleavePlan
from vita_audio.text import parse_audio_input
from vita_audio.training.lora import parse_lora

if TYPE_CHECKING:
    from vita_audio.training.trainer import SpeechTrainingArguments

_TYPES = {"int": int, "float": float, "str": str}


def option(help: str, default: object = None) -> object:
    """Make a dataclass field with its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """The model to train."""

    model_name_or_path: str | None = option(
        "Checkpoint to start from: a Qwen2 model or the result of an earlier stage (default: random weights)"
    )
    config_name: str | None = option("Model configuration, a JSON file or folder (default: the checkpoint's)")
    tokenizer_name: str | None = option("Text tokenizer (default: the checkpoint's)")
    audio_tokenizer_type: str = option(
        "Name of the audio tokenizer; the prefix sensevoice_ makes the audio of user and system turns continuous input",
        "glm4voice",
    )
    audio_tokenizer_path: str | None = option("Weights of the audio tokenizer (default: those embedded in the package)")
    audio_input: list[str] | None = option(
        "How the audio of a role enters the model, such as user=both: discrete, continuous or both (default: as stored "
        "with the checkpoint's tokenizer, otherwise according to the type of the audio tokenizer)"
    )
    audio_model_name_or_path: str | None = option(
        "Folder of a SenseVoiceSmall whose speech encoder to use (default: the checkpoint's encoder)"
    )
    audio_model_freeze: bool = option("Freeze the speech encoder", False)
    text_audio_interval_ratio: list[int] = option(
        "Text tokens, audio tokens, text tokens, ...; the last pair repeats", list(MODES["boost"])
    )
    language_model_freeze: bool = option("Train the MTP modules only", False)
    lora: str | None = option(
        "Train a low-rank adapter instead of the weights, such as r=16,alpha=32,targets=q_proj+v_proj,save=norm,dora "
        "(default: the weights train)"
    )
    mtp_loss_weight: float | None = option("Weight of the mean MTP loss (default: the model configuration's)")
    mtp_kl_weight: float | None = option(
        "Weight of the mean divergence of the MTP modules from the backbone (default: the model configuration's)"
    )
    mtp_depth_weights: list[str] | None = option(
        "Factor of each MTP module's loss, one number per module, or vocalnet: 0.8, 0.8^2, ... (default: the model "
        "configuration's, 1)"
    )
    mtp_coordinator_weight: float | None = option(
        "Weight of the loss of the modules' predictions, mixed with learned weights (default: the model "
        "configuration's, 0)"
    )
    alignment_weight: float | None = option(
        "Weight of a contrastive loss between the mean audio and text embeddings of a document (default: the model "
        "configuration's, 0)"
    )
    mtp_acceptance: float | None = option(
        "How far the modules' tokens must agree with the backbone when the trained model decodes, 0 to 1 (default: not "
        "stored in its generation_config.json, which means 0)"
    )
    model_max_length: int = option("Tokens in a pack", 4096)
    attn_implementation: str = option("eager, sdpa or flash_attention_2; auto: the fastest available", "auto")

    def __post_init__(self):
        if not (self.model_name_or_path or self.config_name):
            raise ValueError("training needs --model_name_or_path (a checkpoint) or --config_name (random weights)")
        if not (self.tokenizer_name or self.model_name_or_path):
            raise ValueError("random weights need --tokenizer_name")
        if self.model_max_length < 2:
            raise ValueError(f"--model_max_length must be at least 2, got {self.model_max_length}")
        for name in ("mtp_loss_weight", "mtp_kl_weight", "mtp_coordinator_weight", "alignment_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < inf:
                raise ValueError(f"--{name} must be 0 or more, got {value}")
        check_depth_weights(self.mtp_depth_weights)
        if self.mtp_acceptance is not None and not 0 <= self.mtp_acceptance <= 1:
            raise ValueError(f"--mtp_acceptance must be from 0 to 1, got {self.mtp_acceptance}")
        self.plan = InterleavePlan.parse(self.text_audio_interval_ratio).check_data()
        self.input_by_role = parse_audio_input(self.audio_input or ())
        self.lora_settings = parse_lora(self.lora) if self.lora is not None else None
        if self.lora_settings and not self.model_name_or_path:
            raise ValueError("--lora needs a base to adapt; set --model_name_or_path")


@dataclass
class DataArguments:
    """The data to train on."""

    dataset_name: str | None = option("Data yaml")
    audio_code_dir: str | None = option(
        "Folder of audio codes, see tools/extract_audio_codes.py (default: OUTPUT_DIR/audio_codes)"
    )
    pack_cache_dir: str | None = option("Folder that caches packed data (default: OUTPUT_DIR/packs)")
    extract_codes: bool = option("Encode audio without codes before training", False)
    preprocessing_num_workers: int = option("Worker processes that pack the data; 0: none", 0)
    user_audio_loss_weight: float = option("Also learn the codes of user speech, with this loss weight", 0.0)
    audio_code_noise: float = option("Fraction of input audio codes to replace by random ones, as regularisation", 0.0)
    curriculum_length: int | None = option(
        "Tokens of a pack in the first step, from where the length grows to --model_max_length (default: whole packs)"
    )
    curriculum_ratio: float = option("Share of the steps in which the length grows", 0.5)

    def __post_init__(self):
        if self.dataset_name is None:
            raise ValueError("--dataset_name (a data yaml) is missing")
        if not Path(self.dataset_name).is_file():
            raise FileNotFoundError(f"--dataset_name: no such data yaml: {self.dataset_name}")
        if self.user_audio_loss_weight < 0:
            raise ValueError(f"--user_audio_loss_weight must be 0 or more, got {self.user_audio_loss_weight}")
        if not 0 <= self.audio_code_noise < 1:
            raise ValueError(f"--audio_code_noise must be in [0, 1), got {self.audio_code_noise}")
        if self.curriculum_length is not None and self.curriculum_length < 2:
            raise ValueError(f"--curriculum_length must be at least 2, got {self.curriculum_length}")
        if not 0 < self.curriculum_ratio <= 1:
            raise ValueError(f"--curriculum_ratio must be in (0, 1], got {self.curriculum_ratio}")


@dataclass
class SpeechOptions:
    """Flags that speech training adds to TrainingArguments, and fields of it with another default."""

    output_dir: str | None = option("Folder for the result; a run continues from the last checkpoint in it")
    overwrite_output_dir: bool = option(
        "Start again in a used folder; checkpoints of earlier runs in it are deleted", False
    )
    mtp_model_lr_mult: float = option("Learning rate of the MTP modules, as a multiple of --learning_rate", 1.0)
    log_main_loss: int = option("Steps from one measurement of a frozen backbone's loss to the next", 10)
    on_nonfinite: str = option(
        "Response to a step with a loss or gradient that is not finite: stop the run, or skip the step", "stop"
    )
    max_loss: float = option(
        "Loss per target, all terms added up, above which a step counts as not finite (untrained: 12, or 24 with MTP "
        "modules)",
        100.0,
    )
    remove_unused_columns: bool = option("Drop columns of the packs that the model does not accept", False)
    report_to: str = option(
        "Integrations that also receive the log, or none (default: tensorboard if it is installed)", "auto"
    )
    dry_run: bool = option("Only print what would train, the memory, the steps and the time, without weights", False)
    num_gpus: int = option("GPUs that --dry_run assumes", 8)
    tokens_per_second: float | None = option("Speed of all GPUs together, from which --dry_run computes the days")
    eval_suite: list[str] | None = option("Evaluate every checkpoint on suites of evaluation.run, such as demo")
    eval_corpus: str | None = option("Folder made by tools.demo.make_corpus, for the demo suite")
    eval_data: str | None = option("Folder made by evaluation.prepare, for the public sets")
    eval_limit: int = option("Number of samples per benchmark", 20)
    eval_minutes: float = option("Time limit of one evaluation in minutes; one that exceeds it fails", 60.0)
    eval_options: list[str] | None = option("Further options of evaluation.run as NAME=VALUE, such as modes=vanilla")
    ddp_timeout: int = option("Seconds that processes wait for the one that prepares the data or evaluates", 6 * 3600)

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("--output_dir is missing")
        if self.mtp_model_lr_mult <= 0:
            raise ValueError(f"--mtp_model_lr_mult must be positive, got {self.mtp_model_lr_mult}")
        if self.num_gpus < 1:
            raise ValueError(f"--num_gpus must be at least 1, got {self.num_gpus}")
        if self.on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"--on_nonfinite must be stop or skip, got {self.on_nonfinite!r}")
        if not self.max_loss > 0:
            raise ValueError(f"--max_loss must be positive, got {self.max_loss}")
        if self.log_main_loss < 1:
            raise ValueError(f"--log_main_loss must be at least 1, got {self.log_main_loss}")
        if self.eval_suite and not 0 < 60 * self.eval_minutes < self.ddp_timeout:
            raise ValueError(
                "--eval_minutes must be above 0 and shorter than --ddp_timeout, for which other processes wait "
                f"({self.ddp_timeout / 60:g} minutes), got {self.eval_minutes:g}"
            )
        if wrong := [entry for entry in self.eval_options or () if not all(entry.partition("="))]:
            raise ValueError(f"--eval_options must be NAME=VALUE, got {' '.join(wrong)}")


def trainer_flags(base: type | None = None) -> type:
    """Return a dataclass with the fields of TrainingArguments, read from its source because importing it takes seconds.

    Names, help texts and the types of booleans and numbers are those of the original. Values of other types stay
    strings or lists of strings; defaults that are not literals become None.

    Args:
        base: Dataclass to which the fields that it lacks are added.
    """
    path = Path(find_spec("transformers").submodule_search_locations[0], "training_args.py")
    known = {item.name for item in fields(base)} if base else ()
    added = [item for item in _read_fields(path) if item[0] not in known]
    return make_dataclass("TrainerFlags", added, bases=(base,) if base else ())


def _read_fields(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, type and dataclass field of every flag in a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"]
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value and not node.target.id.startswith("_"):
            keywords = getattr(node.value, "keywords", [])  # of field()
            options = {keyword.arg: keyword.value for keyword in keywords} or {"default": node.value}
            default = _literal(options.get("default"))
            metadata = options.get("metadata", ast.Dict([], []))
            known = {key.value: _literal(value) for key, value in zip(metadata.keys, metadata.values, strict=True)}
            known = {"help": ""} | {key: value for key, value in known.items() if value is not None}
            kind = _simplify(ast.unparse(node.annotation), default)
            yield node.target.id, kind, field(default=default, metadata=known)


def _simplify(annotation: str, default: Any) -> Any:
    """Return the type as a boolean, number, string or list of strings, which HfArgumentParser parses alike."""
    if "bool" in annotation and "dict" not in annotation:
        return bool | None if default is None else bool
    if "list" in annotation:
        return list[str]
    return _TYPES.get(annotation.removesuffix(" | None"), str)


def _literal(node: ast.expr | None) -> Any:
    """Evaluate a constant expression; return None for any other."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


VOCALNET = "vocalnet"


def check_depth_weights(weights: Sequence[str] | None) -> None:
    """Check the value of --mtp_depth_weights. Raises: ValueError."""
    try:
        wrong = weights not in (None, [VOCALNET]) and not all(0 <= float(weight) < inf for weight in weights)
    except ValueError:
        wrong = True
    if wrong:
        raise ValueError(f"--mtp_depth_weights must be numbers, 0 or more, or {VOCALNET}, got {' '.join(weights)}")


Arguments = tuple[ModelArguments, DataArguments, "SpeechTrainingArguments"]


class _Parser(HfArgumentParser):
    """HfArgumentParser without abbreviations that reports an error in one line, without the usage of 150 flags."""

    def __init__(self, *classes: type):
        super().__init__(classes, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """Parse flags, or the one JSON file whose keys are flag names."""
        if len(argv) == 1 and argv[0].endswith(".json"):
            return self.parse_json_file(argv[0])
        if unknown := self.parse_known_args(argv)[1]:
            self.error(f"unknown arguments: {' '.join(unknown)}")
        return self.parse_args_into_dataclasses(argv)


def parse_flags(argv: Sequence[str] | None = None) -> tuple[ModelArguments, DataArguments, SpeechOptions]:
    """Parse flags as `parse_arguments`, without torch; those of TrainingArguments are not checked.

    Raises: ValueError, FileNotFoundError for impossible values; SystemExit for --help and unknown flags.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    return _Parser(ModelArguments, DataArguments, trainer_flags(SpeechOptions)).parse(argv)


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse flags, or the one JSON file whose keys are flag names.

    Raises: ValueError, FileNotFoundError for impossible values; SystemExit for --help and unknown flags.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parse_flags(argv)  # answers --help and reports most mistakes before the slow import of TrainingArguments
    from vita_audio.training.trainer import SpeechTrainingArguments

    return _Parser(ModelArguments, DataArguments, SpeechTrainingArguments).parse(argv)


def argument_values(arguments: Arguments, *, changed_only: bool = False) -> dict[str, Any]:
    """Return the arguments by name as JSON values.

    Args:
        arguments: Result of `parse_arguments`.
        changed_only: Leave out arguments that have their default value.
    """
    values = {}
    for part in arguments:
        # to_dict of TrainingArguments hides access tokens
        plain = part.to_dict() if hasattr(part, "to_dict") else vars(part)
        for item in fields(part):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if item.name in plain and not (changed_only and getattr(part, item.name) == default):
                values[item.name] = plain[item.name]
    return json.loads(json.dumps(values, default=str))

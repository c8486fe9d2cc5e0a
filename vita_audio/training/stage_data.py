"""The packs a training stage reads: audio codes from the store, packed once and shared by all processes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset

from vita_audio.audio_tokenizers import get_audio_tokenizer, is_continuous
from vita_audio.audio_tokenizers.identity import describe_audio_tokenizer
from vita_audio.data.codes import AudioCodeStore, MissingCodesError, extract_codes
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.data.packing import build_packs
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.text import TextTokenizer
from vita_audio.training.arguments import DataArguments, ModelArguments, SpeechTrainingArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageData:
    """What a stage reads.

    Args:
        tokenizer: With the audio codes.
        front_end: Makes the features of continuous input; None without.
        audio_tokenizer: Description of what made the codes, see `audio_tokenizers.identity`.
    """

    tokenizer: TextTokenizer
    packs: Dataset
    front_end: SenseVoiceFrontEnd | None
    audio_tokenizer: dict[str, str]


def load_stage_data(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: SpeechTrainingArguments
) -> StageData:
    """Load the tokenizers and make the packs of a stage.

    The main process of each machine makes the packs while the others wait.

    Raises: FileNotFoundError that says how to make missing codes, and what the parts raise.
    """
    audio_tokenizer = get_audio_tokenizer(model_arguments.audio_tokenizer_type, model_arguments.audio_tokenizer_path)
    text_tokenizer = model_arguments.tokenizer_name or model_arguments.model_name_or_path
    tokenizer = TextTokenizer.from_pretrained(
        text_tokenizer,
        audio_tokenizer.vocab_size,
        continuous_input=is_continuous(model_arguments.audio_tokenizer_type),
        audio_input=model_arguments.audio_input_roles,
    )
    front_end = None
    if tokenizer.continuous_roles:
        front_end = SenseVoiceFrontEnd.find(
            model_arguments.model_name_or_path, model_arguments.audio_model_name_or_path
        )
    output_dir = Path(training_arguments.output_dir)
    code_dir = Path(data_arguments.audio_code_dir or output_dir / "audio_codes")
    with training_arguments.main_process_first(local=True, desc="packing"):
        is_main = training_arguments.local_process_index == 0
        store = AudioCodeStore(code_dir, audio_tokenizer.fingerprint)
        if data_arguments.extract_codes and is_main:
            _extract(model_arguments, data_arguments, training_arguments, tokenizer, store)
        try:
            packs, report = build_packs(
                data_arguments.dataset_name,
                tokenizer,
                store,
                model_arguments.plan,
                model_arguments.model_max_length,
                cache_dir=data_arguments.pack_cache_dir or output_dir / "packs",
                user_audio_loss_weight=data_arguments.user_audio_loss_weight,
                seed=training_arguments.seed,
                num_workers=data_arguments.preprocessing_num_workers if is_main else 0,
                progress=is_main,
            )
        except MissingCodesError as error:
            command = extraction_command(
                model_arguments, data_arguments, tokenizer, code_dir, seed=training_arguments.seed
            )
            raise FileNotFoundError(f"{error}: {command}, or train with --extract_codes true") from error
    if training_arguments.process_index == 0:
        logger.info("%s", report.summary())
    return StageData(tokenizer, packs, front_end, describe_audio_tokenizer(audio_tokenizer))


def extraction_command(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    tokenizer: TextTokenizer,
    code_dir: Path,
    *,
    seed: int,
) -> str:
    """Return the command that makes the codes of a data yaml; the seed decides which of its rows are used."""
    path = model_arguments.audio_tokenizer_path
    roles = " ".join(f"{role}={how}" for role, how in tokenizer.audio_input.items())
    return (
        f"python tools/extract_audio_codes.py --data {data_arguments.dataset_name} --codes {code_dir} --seed {seed} "
        f"--audio-tokenizer-type {model_arguments.audio_tokenizer_type} --audio-input {roles}"
    ) + (f" --audio-tokenizer-path {path}" if path else "")


def _extract(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: SpeechTrainingArguments,
    tokenizer: TextTokenizer,
    store: AudioCodeStore,
) -> None:
    make_tokenizer = partial(
        get_audio_tokenizer, model_arguments.audio_tokenizer_type, model_arguments.audio_tokenizer_path
    )
    mixture = load_mixture(data_arguments.dataset_name, training_arguments.seed)
    paths = referenced_audio(mixture, tokenizer.discrete_roles)
    report = extract_codes(paths, store, make_tokenizer, devices=[str(training_arguments.device)], progress=True)
    logger.info("%s", report.summary())

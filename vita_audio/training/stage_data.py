"""The packs of a training stage: audio codes from the store, packed once and shared by all processes."""

from __future__ import annotations

import logging
import shlex
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
from vita_audio.training.arguments import Arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageData:
    """The data of a stage.

    Attributes:
        tokenizer: Text tokenizer with the audio codes.
        front_end: Computes the features of continuous input; None if there is none.
        audio_tokenizer: Description of the tokenizer that made the codes, see `audio_tokenizers.identity`.
    """

    tokenizer: TextTokenizer
    packs: Dataset
    front_end: SenseVoiceFrontEnd | None
    audio_tokenizer: dict[str, str]


def load_stage_data(arguments: Arguments, *, is_main: bool = True) -> StageData:
    """Load the tokenizers and make the packs of a stage.

    Args:
        is_main: Whether this process extracts codes, packs and shows progress. Other processes of the machine must call
            this function afterwards.
    Raises: FileNotFoundError with the command that makes missing codes; FileNotFoundError or ValueError for tokenizers
        and data that are missing or damaged.
    """
    model, data, training = arguments
    make_tokenizer = partial(get_audio_tokenizer, model.audio_tokenizer_type, model.audio_tokenizer_path)
    audio_tokenizer = make_tokenizer()
    tokenizer = TextTokenizer.from_pretrained(
        model.tokenizer_name or model.model_name_or_path,
        audio_tokenizer.vocab_size,
        continuous_input=is_continuous(model.audio_tokenizer_type),
        audio_input=model.input_by_role,
    )
    front_end = None
    if tokenizer.continuous_roles:
        front_end = SenseVoiceFrontEnd.find(model.model_name_or_path, model.audio_model_name_or_path)
    store = AudioCodeStore(data.audio_code_dir or Path(training.output_dir, "audio_codes"), audio_tokenizer.fingerprint)
    if data.extract_codes and is_main:
        paths = referenced_audio(load_mixture(data.dataset_name, training.seed), tokenizer.discrete_roles)
        extraction = extract_codes(paths, store, make_tokenizer, devices=[str(training.device)], progress=True)
        logger.info("%s", extraction.summary())
    try:
        packs, report = build_packs(
            data.dataset_name,
            tokenizer,
            store,
            model.plan,
            model.model_max_length,
            cache_dir=data.pack_cache_dir or Path(training.output_dir, "packs"),
            user_audio_loss_weight=data.user_audio_loss_weight,
            seed=training.seed,
            num_workers=data.preprocessing_num_workers if is_main else 0,
            progress=is_main,
        )
    except MissingCodesError as error:
        command = _extraction_command(arguments, tokenizer, store.folder)
        raise FileNotFoundError(f"{error}: {command}, or train with --extract_codes true") from error
    logger.info("%s", report.summary())
    return StageData(tokenizer, packs, front_end, describe_audio_tokenizer(audio_tokenizer))


def _extraction_command(arguments: Arguments, tokenizer: TextTokenizer, code_folder: Path) -> str:
    """Return the shell command that makes the codes of a stage; the seed decides which data rows are used."""
    model, data, training = arguments
    words = ["python", "tools/extract_audio_codes.py", "--data", data.dataset_name, "--codes", code_folder]
    words += ["--seed", training.seed, "--audio-tokenizer-type", model.audio_tokenizer_type, "--audio-input"]
    words += [f"{role}={how}" for role, how in tokenizer.audio_input.items()]
    if model.audio_tokenizer_path:
        words += ["--audio-tokenizer-path", model.audio_tokenizer_path]
    return shlex.join(map(str, words))

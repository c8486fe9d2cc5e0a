"""The packs of a training stage: audio codes from the store, packed once and shared by all processes."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from functools import partial

from datasets import Dataset

from vita_audio.audio_tokenizers import get_audio_tokenizer, is_continuous
from vita_audio.data.codes import AudioCodeStore, MissingCodesError, extract_codes
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.data.packing import PackReport, build_packs
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.text import TextTokenizer
from vita_audio.training.settings import StageSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageData:
    """The data of a stage.

    Attributes:
        tokenizer: Text tokenizer with the audio codes.
        files: Data files, which `sources` of the packs refer to.
        front_end: Computes the features of continuous input; None if there is none.
        audio_tokenizer: `AudioTokenizer.identity` of the tokenizer that made the codes.
        report: Statistics of the packs, and the samples that were left out.
    """

    tokenizer: TextTokenizer
    packs: Dataset
    files: tuple[str, ...]
    front_end: SenseVoiceFrontEnd | None
    audio_tokenizer: dict[str, str]
    report: PackReport


def load_stage_data(settings: StageSettings, *, is_main: bool = True, device: str = "cpu") -> StageData:
    """Load the tokenizers and make the packs of a stage.

    Args:
        is_main: Whether this process extracts codes, packs and shows progress. Other processes of the machine must call
            this function afterwards.
        device: Device that extracts codes.
    Raises: FileNotFoundError with the command that makes missing codes; FileNotFoundError or ValueError for tokenizers
        and data that are missing or damaged.
    """
    make_tokenizer = partial(get_audio_tokenizer, settings.audio_tokenizer_type, settings.audio_tokenizer_path)
    audio_tokenizer = make_tokenizer()
    tokenizer = TextTokenizer.from_pretrained(
        settings.tokenizer_name,
        audio_tokenizer.vocab_size,
        continuous_input=is_continuous(settings.audio_tokenizer_type),
        audio_input=settings.audio_input,
    )
    front_end = None
    if tokenizer.continuous_roles:
        front_end = SenseVoiceFrontEnd.find(settings.model_name_or_path, settings.audio_model_name_or_path)
    store = AudioCodeStore(settings.audio_code_dir, audio_tokenizer.fingerprint)
    if settings.extract_codes and is_main:
        paths = referenced_audio(load_mixture(settings.dataset_name, settings.seed), tokenizer.discrete_roles)
        extraction = extract_codes(paths, store, make_tokenizer, devices=[device], progress=True)
        logger.info("%s", extraction.summary())
    try:
        packs, report = build_packs(
            settings.dataset_name,
            tokenizer,
            store,
            settings.plan,
            settings.model_max_length,
            cache_dir=settings.pack_cache_dir,
            user_audio_loss_weight=settings.user_audio_loss_weight,
            seed=settings.seed,
            num_workers=settings.preprocessing_num_workers if is_main else 0,
            progress=is_main,
        )
    except MissingCodesError as error:
        command = _extraction_command(settings, tokenizer)
        raise FileNotFoundError(f"{error}: {command}, or train with --extract_codes true") from error
    logger.info("%s", report.summary())
    files = tuple(source.file for source in report.sources)
    return StageData(tokenizer, packs, files, front_end, audio_tokenizer.identity, report)


def _extraction_command(settings: StageSettings, tokenizer: TextTokenizer) -> str:
    """Return the shell command that makes the codes of a stage; the seed decides which data rows are used."""
    options = {"data": settings.dataset_name, "codes": settings.audio_code_dir, "seed": settings.seed}
    options |= {"audio-tokenizer-type": settings.audio_tokenizer_type}
    if settings.audio_tokenizer_path:
        options["audio-tokenizer-path"] = settings.audio_tokenizer_path
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--audio-input", *(f"{role}={how}" for role, how in tokenizer.audio_input.items())]
    return shlex.join(map(str, ["python", "tools/extract_audio_codes.py", *words]))

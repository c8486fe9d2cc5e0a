"""Speech recognisers that nobody here trained, to judge speech by what they understand. Plug in more in `JUDGES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.judges.base import Judge, JudgeUnavailableError, Sound, is_audible
from evaluation.judges.paraformer import ParaformerJudge
from evaluation.judges.sphinx import SphinxJudge
from evaluation.judges.whisper import (
    TransformersWhisperJudge,
    WhisperJudge,
    load_faster_whisper,
    load_whisper_tiny_en,
)
from vita_audio.optional import MissingPackageError

__all__ = [
    "JUDGES",
    "KINDS",
    "Judge",
    "JudgeUnavailableError",
    "ParaformerJudge",
    "Sound",
    "SphinxJudge",
    "TransformersWhisperJudge",
    "WhisperJudge",
    "get_judge",
    "is_audible",
]

JUDGES: dict[str, Callable[[int | None], Judge]] = {
    "whisper_tiny_en": load_whisper_tiny_en,
    "pocketsphinx": SphinxJudge,
    "paraformer_zh": lambda num_threads: ParaformerJudge("paraformer-zh", "paraformer_zh"),
}
# Before a colon; behind it a folder or a name on the hub.
KINDS = ("faster_whisper", "whisper", "paraformer")


def get_judge(name: str, num_threads: int | None = None, *, language: str | None = None) -> Judge:
    """Load a judge.

    Args:
        name: One of `JUDGES`; KIND:MODEL with one of `KINDS` and a folder or a name on the hub, such as
            "whisper:openai/whisper-large-v3"; or the folder of a Whisper model, for CTranslate2 or transformers.
        num_threads: Clips at a time, for those that can.
        language: What is to be heard; None: what the judge is made for, English if it knows several.
    Raises: ValueError for an unknown name, or a judge made for another language; FileNotFoundError; MissingPackageError
        (an ImportError); JudgeUnavailableError (an OSError) if loading fails or the model does not know the language.
    """
    kind, model = ("", name) if name in JUDGES else _kind_and_model(name)
    try:
        judge = _load(kind, model, num_threads, language or "en")
    except (FileNotFoundError, MissingPackageError):
        raise
    except Exception as error:  # of any package that reads models or asks a hub for them
        reason = " ".join(str(error).split())
        raise JudgeUnavailableError(
            f"the judge {name} cannot be loaded ({type(error).__name__}: {reason}); give a folder that holds it"
        ) from error
    if language not in (None, judge.language):
        raise ValueError(f"the judge {name} hears {judge.language}, got {language!r}; choose another judge")
    return judge


def _kind_and_model(name: str) -> tuple[str, str]:
    kind, colon, model = name.partition(":")
    if not colon and Path(name).is_dir():
        return "whisper" if _is_for_transformers(Path(name)) else "faster_whisper", name
    if kind not in KINDS or not model:
        raise ValueError(
            f"judge must be one of {', '.join(JUDGES)} or the folder of a Whisper model, or one of {', '.join(KINDS)} "
            f"with a colon and a folder or a name on the hub, got {name!r}"
        )
    return kind, model


def _load(kind: str, model: str, num_threads: int | None, language: str) -> Judge:
    if not kind:
        return JUDGES[model](num_threads)
    name = f"{kind}:{Path(model).name if Path(model).is_dir() else model}"
    if kind == "faster_whisper":
        return load_faster_whisper(model, name, num_threads=num_threads, language=language)
    if kind == "whisper":
        return TransformersWhisperJudge(model, name, language=language)
    return ParaformerJudge(model, name)


def _is_for_transformers(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "model.bin").is_file()

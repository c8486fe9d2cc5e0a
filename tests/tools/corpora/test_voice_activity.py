"""Recordings are split at pauses, never cut longer than allowed, and read block by block."""

import numpy as np
import pytest

from tools.corpora.voice_activity import CHUNK_SECONDS, Splitting, speech_probabilities, speech_stretches
from vita_audio.serve.turns import VadStream, load_vad


def probabilities(*runs):
    """Chunks of speech and silence in turn, silence first, in seconds."""
    counts = [round(seconds / CHUNK_SECONDS) for seconds in runs]
    return np.concatenate([np.full(count, float(place % 2), np.float32) for place, count in enumerate(counts)])


def stretches(*runs, **settings):
    found = probabilities(*runs)
    return speech_stretches(found, len(found) * CHUNK_SECONDS, Splitting(**settings))


def test_speech_is_split_at_pauses_and_keeps_a_little_silence():
    found = stretches(1, 2, 0.3, 1, 1, 3, 1)
    assert np.allclose(found, [(0.9, 4.5), (5.2, 8.5)], atol=0.06)
    assert stretches(1, 2, 0.3, 1, pause_seconds=0.2)[0][1] < 3.2


def test_silence_around_clips_is_never_shared():
    found = stretches(1, 2, 0.2, 1, pause_seconds=0.15)
    assert len(found) == 2 and found[0][1] <= found[1][0]


def test_ends_stay_within_the_recording():
    assert stretches(0, 2) == [(0.0, pytest.approx(2, abs=0.02))]


def test_long_speech_is_cut_where_speech_is_least_likely():
    found = probabilities(0.5, 30, 0.5)
    found[round(13 / CHUNK_SECONDS) : round(13.2 / CHUNK_SECONDS)] = 0.4
    pieces = speech_stretches(found, 31.0, Splitting(max_seconds=20))
    assert len(pieces) == 2 and pieces[0][1] == pytest.approx(13.1, abs=0.15)
    pieces = speech_stretches(probabilities(0, 600), 600.0, Splitting(max_seconds=20))
    assert max(end - start for start, end in pieces) <= 20
    assert [piece[0] for piece in pieces[1:]] == [piece[1] for piece in pieces[:-1]]


@pytest.mark.parametrize("runs", [(0,), (3,), (1, 0.06, 1)])
def test_no_speech_gives_no_clip(runs):
    assert stretches(*runs) == []


def test_blocks_of_any_size_give_the_same_probabilities():
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 3 * 44_100).astype(np.float32)
    vad = VadStream(load_vad())
    whole = speech_probabilities(vad, [wave], 44_100)
    parts = speech_probabilities(vad, np.split(wave, [100, 101, 30_000, 90_000]), 44_100)
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    assert len(whole) == -(-3 * 16_000 // 512)

"""Measures of sound, and fingerprints that copies share and other clips do not."""

import io

import numpy as np
import pytest
import soundfile
import soxr

from tools.common.synthetic_speech import default_voice, load_voice, synthesise
from tools.corpora.measures import CEILING_DB, FLOOR_DB, measure_sound, print_distance, print_keys, sound_print
from tools.corpora.selection import SAME_PRINT

RATE = 16_000


@pytest.fixture(scope="module")
def speech():
    voice = load_voice(default_voice(), seed=0)
    texts = (
        "The weather is fine today.",
        "The weather is fine today.",
        "Seven boats left the harbour.",
        "Good evening.",
    )
    return [synthesise(voice, text) for text in texts], voice.config.sample_rate


def test_level_clipping_and_noise():
    tone = 0.5 * np.sin(np.arange(2 * RATE) * 0.1).astype(np.float32)
    assert measure_sound(tone, RATE).level_db == pytest.approx(-9.03, abs=0.05)
    assert measure_sound(tone, RATE).clipped == 0
    assert measure_sound((tone * 4).clip(-1, 1), RATE).clipped > 0.5
    noise = np.random.default_rng(0).normal(0, 0.005, len(tone)).astype(np.float32)
    half = np.where(np.arange(len(tone)) < RATE, tone, 0) + noise
    assert measure_sound(half, RATE).snr_db == pytest.approx(10 * np.log10(0.125 / 0.005**2), abs=1)
    assert measure_sound(noise, RATE).snr_db < 2


@pytest.mark.parametrize("num_samples", [1, 10, 100, 5000])
def test_silence_and_very_short_clips_have_measures(num_samples):
    measures = measure_sound(np.zeros(num_samples, np.float32), RATE)
    assert (measures.level_db, measures.snr_db, measures.seconds) == (FLOOR_DB, CEILING_DB, num_samples / RATE)
    assert len(measures.print) == 32


def test_copies_are_found_and_other_clips_are_not(speech):
    waves, rate = speech
    prints = [sound_print(wave, rate) for wave in waves]
    for place, wave in enumerate(waves):
        content = io.BytesIO()
        soundfile.write(content, soxr.resample(wave * 0.3, rate, RATE), RATE, format="MP3")
        copy = sound_print(soundfile.read(io.BytesIO(content.getvalue()), dtype="float32")[0], RATE)
        distances = [print_distance(copy, one) for one in prints]
        assert distances[place] < SAME_PRINT < min(distances[:place] + distances[place + 1 :])
        assert {*print_keys(copy)} & {*print_keys(prints[place])}

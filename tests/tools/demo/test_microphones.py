"""Noise, rooms, pauses and silence have the sizes they are asked for, and the same seed gives the same recording."""

import numpy as np
import pytest

from tools.demo.microphones import random_recording, with_noise, with_pause, with_room, with_silence

RATE = 16000


@pytest.fixture
def tone():
    return (0.3 * np.sin(np.arange(RATE) * 0.2)).astype(np.float32)


def rms(wave):
    return np.sqrt((wave.astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("colour", [0.0, 2.0])
def test_noise_has_its_level(tone, colour):
    noisy = with_noise(tone, -40, np.random.default_rng(0), colour)
    assert noisy.dtype == np.float32 and rms(noisy - tone) == pytest.approx(0.01, rel=1e-3)


def test_coloured_noise_is_mostly_low():
    spectra = [
        np.abs(np.fft.rfft(with_noise(np.zeros(RATE), -20, np.random.default_rng(0), colour))) for colour in (0, 2)
    ]
    low = [(spectrum[:1000] ** 2).sum() / (spectrum**2).sum() for spectrum in spectra]
    assert low[0] < 0.2 and low[1] > 0.9


def test_a_room_adds_its_energy_after_the_direct_sound():
    click = np.zeros(RATE, np.float32)
    click[100] = 1.0
    echo = with_room(click, RATE, 0.3, 10.0, np.random.default_rng(0))
    assert echo[100] == pytest.approx(1.0, abs=1e-5) and np.abs(echo[:100]).max() < 1e-5
    energy = echo[101:].astype(np.float64) ** 2
    assert energy.sum() == pytest.approx(0.1, rel=1e-3)
    assert energy[: RATE // 10].sum() > 0.95 * energy.sum()  # 20 dB in a third of 0.3 s


def test_a_pause_goes_where_speech_is_weakest(tone):
    speech = np.concatenate([tone, np.zeros(RATE // 10, np.float32), tone])
    paused = with_pause(speech, RATE, 0.5)
    assert len(paused) == len(speech) + RATE // 2
    assert not paused[RATE : RATE + RATE // 2 + RATE // 10].any() and rms(paused[-RATE:]) == pytest.approx(rms(tone))


def test_silence_is_around_the_wave(tone):
    padded = with_silence(tone, RATE, 1.0, 0.5)
    assert len(padded) == 2.5 * RATE and np.array_equal(padded[RATE : 2 * RATE], tone)


def test_a_seed_is_a_microphone(tone):
    recordings = [random_recording(tone, RATE, seed) for seed in range(20)]
    assert all(np.abs(wave).max() <= 1 and len(wave) >= RATE and wave.dtype == np.float32 for wave in recordings)
    assert len({len(wave) for wave in recordings}) > 5 and min(map(rms, recordings)) < 0.1 * rms(tone)
    assert np.array_equal(recordings[7], random_recording(tone, RATE, 7))

"""Resampling against the public tokenizer's numbers, and its behaviour at the edges."""

from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from vita_audio import resample as module
from vita_audio.resample import MAX_BLOCK, resample

ASSETS = Path(__file__).parent / "assets" / "speech_tokenizer" / "vq_wav"


def test_equals_the_reference():
    samples, rate = soundfile.read(ASSETS / "mono_22k05.wav", dtype="float32")
    expected = load_file(ASSETS / "tensors.safetensors")["mono_22k05.resampled_16k"][0]
    # tolerance of the golden case
    torch.testing.assert_close(resample(torch.from_numpy(samples), rate, 16_000), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "rates", [(8_000, 16_000), (44_100, 16_000), (16_000, 24_000), (11_025, 16_000), (22_254, 16_000), (16_001, 44_099)]
)
def test_a_tone_stays_the_same_tone(rates):
    old, new = (torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate) for rate in rates)
    made = resample(old, *rates)
    assert made.shape == new.shape and made.dtype == torch.float32
    torch.testing.assert_close(made[200:-200], new[200:-200], atol=2e-3, rtol=0)


def test_tones_above_the_new_limit_vanish():
    tone = torch.sin(2 * torch.pi * 11_000 * torch.arange(48_000) / 48_000)
    assert resample(tone, 48_000, 16_000)[200:-200].abs().max() < 0.01


@pytest.mark.parametrize("rates", [(8_000, 16_000), (44_100, 16_000), (16_000, 22_050)])
def test_small_blocks_make_the_same_samples(rates, monkeypatch):
    wave = 0.2 * torch.randn(5_001, generator=torch.Generator().manual_seed(0))
    expected = resample(wave, *rates)
    monkeypatch.setattr(module, "MAX_BLOCK", 1_000)
    torch.testing.assert_close(resample(wave, *rates), expected)


def test_long_waves_are_resampled_in_blocks():
    wave = torch.randn(MAX_BLOCK // 6, generator=torch.Generator().manual_seed(0))
    whole, middle = resample(wave, 48_000, 16_000), len(wave) // 2 // 3 * 3
    part = resample(wave[middle - 300 : middle + 300], 48_000, 16_000)
    torch.testing.assert_close(whole[middle // 3 - 50 : middle // 3 + 50], part[50:150])


@pytest.mark.parametrize(("num_samples", "expected"), [(0, 0), (1, 1), (3, 1), (4, 2)])
def test_number_of_samples(num_samples, expected):
    assert resample(torch.ones(num_samples), 48_000, 16_000).shape == (expected,)


@pytest.mark.parametrize("rates", [(0, 16_000), (16_000, -1)])
def test_rates_must_be_positive(rates):
    with pytest.raises(ValueError, match=f"sample_rate must be positive, got {min(rates)}"):
        resample(torch.ones(4), *rates)

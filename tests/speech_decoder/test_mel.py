"""Log-mel against the public definition, computed independently in NumPy."""

import numpy as np
import pytest
import torch

from vita_audio.speech_decoder.mel import mel_filters, mel_spectrogram


def _numpy_log_mel(wave: np.ndarray) -> np.ndarray:
    """One wave, frame by frame, with the filters summed bin by bin."""
    padded = np.pad(wave.astype(np.float64), 384, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    starts = range(0, len(padded) - 1024 + 1, 256)
    power = np.stack([np.abs(np.fft.rfft(padded[s : s + 1024] * window)) ** 2 for s in starts], axis=1)
    magnitude = np.sqrt(power + 1e-9)
    top = 15 + 27 * np.log(8.0) / np.log(6.4)
    edges = [m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in np.linspace(0, top, 82)]
    mel = np.zeros((80, magnitude.shape[1]))
    for band, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for index in range(513):
            hertz = index * 22050 / 1024
            weight = min((hertz - low) / (middle - low), (high - hertz) / (high - middle))
            mel[band] += max(weight, 0) * 2 / (high - low) * magnitude[index]
    return np.log(np.maximum(mel, 1e-5))


def test_log_mel_equals_independent_computation():
    time = np.arange(4096) / 22050
    noise = np.random.default_rng(0).normal(0, 0.05, 4096)
    wave = (0.4 * np.sin(2 * np.pi * 220 * time) + 0.2 * np.sin(2 * np.pi * 3100 * time) + noise).astype(np.float32)
    mel = mel_spectrogram(torch.from_numpy(wave)[None])
    assert mel.shape == (1, 80, 16)
    torch.testing.assert_close(mel[0].double().numpy(), _numpy_log_mel(wave), atol=1e-4, rtol=0)


def test_silence_is_floor_and_has_finite_gradient():
    wave = torch.zeros(1, 2048, requires_grad=True)
    mel = mel_spectrogram(wave)
    assert mel.min().item() >= np.log(1e-5) - 1e-6
    mel.sum().backward()
    assert wave.grad.isfinite().all()


def test_batch_equals_single_and_ignores_autocast():
    waves = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.autocast("cpu", torch.bfloat16):
        together = mel_spectrogram(waves)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[1:], mel_spectrogram(waves[1:]))


def test_filters_cover_every_band():
    assert (mel_filters().sum(dim=1) > 0).all()


def test_too_short_wave_is_refused():
    with pytest.raises(ValueError, match="more than 384 samples, got 384"):
        mel_spectrogram(torch.zeros(1, 384))

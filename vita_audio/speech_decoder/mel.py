"""Log-mel spectrogram that the flow predicts and the vocoder reads (the one of HiFi-GAN and Matcha-TTS)."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 22050
NUM_BANDS = 80
HOP_LENGTH = 256
FFT_SIZE = 1024
MAX_FREQUENCY = 8000.0
MIN_MAGNITUDE = 1e-5


@dataclass(frozen=True)
class MelSettings:
    """Sizes of a spectrogram in samples, frequencies in Hz; the defaults are those of the speech decoder here."""

    sample_rate: int = SAMPLE_RATE
    num_bands: int = NUM_BANDS
    hop_length: int = HOP_LENGTH
    fft_size: int = FFT_SIZE
    min_frequency: float = 0.0
    max_frequency: float = MAX_FREQUENCY


RELEASED = MelSettings()


def hertz_to_mel(frequency: Tensor) -> Tensor:
    """Slaney's scale: linear below 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4)."""
    log_part = 15 + 27 * torch.log(frequency.clamp(min=1.0) / 1000) / torch.log(torch.tensor(6.4, dtype=torch.float64))
    return torch.where(frequency < 1000, frequency * 3 / 200, log_part)


def mel_to_hertz(mel: Tensor) -> Tensor:
    """Inverse of `hertz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


@functools.cache
def mel_filters(settings: MelSettings = RELEASED) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, (bands, fft_size / 2 + 1), float32."""
    ends = torch.tensor([settings.min_frequency, settings.max_frequency], dtype=torch.float64)
    low, high = hertz_to_mel(ends).tolist()
    edges = mel_to_hertz(torch.linspace(low, high, settings.num_bands + 2, dtype=torch.float64))
    bins = torch.linspace(0, settings.sample_rate / 2, settings.fft_size // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def mel_spectrogram(wave: Tensor, settings: MelSettings = RELEASED) -> Tensor:
    """Natural log-mel of a wave.

    Args:
        wave: (batch, samples), float in [-1, 1], at the settings' rate.
    Returns: (batch, bands, samples // hop_length), float32, no value below log(1e-5).
    Raises: ValueError if there are too few samples for the edges, which are mirrored; 384 by default.
    """
    padding = (settings.fft_size - settings.hop_length) // 2
    if wave.shape[-1] <= padding:
        raise ValueError(f"a wave must have more than {padding} samples, got {wave.shape[-1]}; pad it with silence")
    with torch.autocast(wave.device.type, enabled=False):
        padded = F.pad(wave.float()[:, None], (padding, padding), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded,
            settings.fft_size,
            settings.hop_length,
            window=torch.hann_window(settings.fft_size, device=wave.device),
            center=False,
            return_complex=True,
        )
        # The small constant keeps the gradient of the magnitude finite where the spectrum is zero.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        return (mel_filters(settings).to(wave.device) @ magnitude).clamp(min=MIN_MAGNITUDE).log()

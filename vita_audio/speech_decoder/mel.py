"""Log-mel spectrogram that the flow predicts and the vocoder reads (the one of HiFi-GAN and Matcha-TTS)."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 22050
NUM_BANDS = 80
HOP_LENGTH = 256
FFT_SIZE = 1024
MAX_FREQUENCY = 8000.0
MIN_MAGNITUDE = 1e-5


def hertz_to_mel(frequency: Tensor) -> Tensor:
    """Slaney's scale: linear below 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4)."""
    log_part = 15 + 27 * torch.log(frequency.clamp(min=1.0) / 1000) / torch.log(torch.tensor(6.4, dtype=torch.float64))
    return torch.where(frequency < 1000, frequency * 3 / 200, log_part)


def mel_to_hertz(mel: Tensor) -> Tensor:
    """Inverse of `hertz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


@functools.cache
def mel_filters() -> Tensor:
    """Triangles of equal area on Slaney's mel scale from 0 to 8 kHz, (bands, FFT_SIZE / 2 + 1), float32."""
    top = hertz_to_mel(torch.tensor(MAX_FREQUENCY, dtype=torch.float64))
    edges = mel_to_hertz(torch.linspace(0, float(top), NUM_BANDS + 2, dtype=torch.float64))
    bins = torch.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def mel_spectrogram(wave: Tensor) -> Tensor:
    """Natural log-mel of a 22,050 Hz wave.

    Args:
        wave: (batch, samples), float in [-1, 1].
    Returns: (batch, 80, samples // 256), float32, no value below log(1e-5).
    Raises: ValueError if there are 384 samples or fewer (the edges are mirrored).
    """
    padding = (FFT_SIZE - HOP_LENGTH) // 2
    if wave.shape[-1] <= padding:
        raise ValueError(f"a wave must have more than {padding} samples, got {wave.shape[-1]}; pad it with silence")
    with torch.autocast(wave.device.type, enabled=False):
        padded = F.pad(wave.float()[:, None], (padding, padding), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded,
            FFT_SIZE,
            HOP_LENGTH,
            window=torch.hann_window(FFT_SIZE, device=wave.device),
            center=False,
            return_complex=True,
        )
        # The small constant keeps the gradient of the magnitude finite where the spectrum is zero.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        return (mel_filters().to(wave.device) @ magnitude).clamp(min=MIN_MAGNITUDE).log()

"""Log-mel spectrogram that the flow predicts and the vocoder reads, as in HiFi-GAN and Matcha-TTS."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 22050
NUM_BANDS = 80
HOP_LENGTH = 256
FFT_SIZE = 1024
MAX_FREQUENCY = 8000.0
MIN_MAGNITUDE = 1e-5


@dataclass(frozen=True)
class MelSettings:
    """Sizes of a spectrogram in samples, frequencies in Hz; the defaults are those of the GLM-4-Voice decoder."""

    sample_rate: int = SAMPLE_RATE
    num_bands: int = NUM_BANDS
    hop_length: int = HOP_LENGTH
    fft_size: int = FFT_SIZE
    min_frequency: float = 0.0
    max_frequency: float = MAX_FREQUENCY


RELEASED = MelSettings()


@functools.cache
def mel_filters(settings: MelSettings = RELEASED) -> Tensor:
    """Return triangles of equal area on Slaney's mel scale, (bands, fft_size / 2 + 1), float32."""
    filters = mel_filter_bank(
        settings.fft_size // 2 + 1,
        settings.num_bands,
        settings.min_frequency,
        settings.max_frequency,
        settings.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )  # (bins, bands), float64
    return torch.from_numpy(filters).T.float().contiguous()


def mel_spectrogram(wave: Tensor, settings: MelSettings = RELEASED) -> Tensor:
    """Return the natural logarithm of the mel spectrogram of a wave.

    Args:
        wave: (batch, samples), float in [-1, 1], at the settings' rate.
    Returns: (batch, bands, samples // hop_length), float32, no value below log(1e-5).
    Raises: ValueError for a wave too short to be mirrored at its edges (384 samples or fewer by default).
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

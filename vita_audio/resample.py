"""Resample waves as the public tokenizers do, so that codes and features are the same.

Follows `torchaudio.transforms.Resample` with its default settings: a low-pass filter of six zero crossings with a Hann
window and a cutoff at 0.99 of the lower rate's Nyquist frequency.
"""

import functools
import math

import torch
from torch import Tensor

RULE = "sinc6-hann"  # part of fingerprints, since codes depend on it
ZERO_CROSSINGS = 6  # on either side
ROLLOFF = 0.99
MAX_BLOCK = 1 << 22  # values multiplied at once; bounds the memory for long waves and odd rates


def resample(wave: Tensor, sample_rate: int, target_rate: int) -> Tensor:
    """Resample a wave, (samples,) float32, to (ceil(samples * target_rate / sample_rate),) float32.

    Raises: ValueError for a rate that is not positive.
    """
    if sample_rate <= 0 or target_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {min(sample_rate, target_rate)}")
    if sample_rate == target_rate or not len(wave):
        return wave
    divisor = math.gcd(sample_rate, target_rate)
    old, new = sample_rate // divisor, target_rate // divisor  # each round of `old` samples becomes `new` samples
    if old * new > MAX_BLOCK:
        return _resample_one_by_one(wave, old, new)
    filters, reach = _filters(old, new)
    windows = torch.nn.functional.pad(wave, (reach, reach + old)).unfold(0, len(filters), old)  # (rounds, taps), a view
    blocks = [block @ filters for block in windows.split(max(1, MAX_BLOCK // len(filters)))]
    return torch.cat(blocks).flatten()[: -(-len(wave) * new // old)]


def _resample_one_by_one(wave: Tensor, old: int, new: int) -> Tensor:
    """Resample at rates such as 22,254 Hz, where a round is too long for a table of filters."""
    cutoff, reach = _low_pass(old, new)
    offsets = torch.arange(-reach, reach + 2, dtype=torch.float64)
    windows = torch.nn.functional.pad(wave, (reach, reach + 1)).unfold(0, len(offsets), 1)  # (samples, taps), a view
    samples = []
    for places in torch.arange(-(-len(wave) * new // old)).split(max(1, MAX_BLOCK // len(offsets))):
        distance = (offsets - (places * old % new / new)[:, None]) / old  # from the taps, in rounds
        samples.append((windows[places * old // new] * _weights(distance, cutoff, old)).sum(dim=1))
    return torch.cat(samples)


def _low_pass(old: int, new: int) -> tuple[float, int]:
    """Return the zero crossings per round, and the number of samples read on either side of an output sample."""
    cutoff = ROLLOFF * min(old, new)
    return cutoff, math.ceil(ZERO_CROSSINGS * old / cutoff)


def _weights(distance: Tensor, cutoff: float, old: int) -> Tensor:
    position = (distance * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(position * math.pi / ZERO_CROSSINGS / 2) ** 2
    return (torch.sinc(position) * window * cutoff / old).float()


@functools.lru_cache(maxsize=8)
def _filters(old: int, new: int) -> tuple[Tensor, int]:
    """Return the filters of a round, (old + 2 * reach, new), and the number of samples read on either side of it."""
    cutoff, reach = _low_pass(old, new)
    taps = torch.arange(-reach, old + reach, dtype=torch.float64) / old
    moments = torch.arange(new) / new  # float32, as in the public function
    return _weights(taps[:, None] - moments, cutoff, old), reach

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
MAX_BLOCK = 1 << 22  # values multiplied at once; bounds the memory for long waves


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
    filters, reach = _filters(old, new)
    num_rounds, num_taps = -(-len(wave) // old), filters.shape[1]
    wave, num_samples = torch.nn.functional.pad(wave, (reach, reach + old + 1)), -(-len(wave) * new // old)
    samples = []
    for place, weights in enumerate(filters[:num_samples]):
        windows = wave[place * old // new :].unfold(0, num_taps, old)[:num_rounds]  # (rounds, taps), a view
        blocks = [block @ weights for block in windows.split(max(1, MAX_BLOCK // num_taps))]
        samples.append(torch.cat(blocks))
    return torch.stack(samples, dim=1).flatten()[:num_samples]


@functools.lru_cache(maxsize=8)
def _filters(old: int, new: int) -> tuple[Tensor, int]:
    """Return the filter of each sample of a round, (new, taps), and the number of old samples read before it."""
    cutoff = ROLLOFF * min(old, new)  # zero crossings per round
    reach = math.ceil(ZERO_CROSSINGS * old / cutoff)
    places = torch.arange(new)
    taps = (places * old // new)[:, None] + torch.arange(-reach, reach + 2)  # (new, taps), as numbers of old samples
    moments = (places / new)[:, None]  # float32, as in the public function
    position = ((taps.double() / old - moments) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(position * math.pi / ZERO_CROSSINGS / 2) ** 2
    return (torch.sinc(position) * window * cutoff / old).float(), reach

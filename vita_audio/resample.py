"""Change of a wave's sample rate by the windowed sinc of the public tokenizers, so that codes and features are theirs.

The rule is that of `torchaudio.transforms.Resample` with its default settings: a low-pass of six zero crossings under a
Hann window, at 0.99 of the lower of the two rates.
"""

import functools
import math

import torch
from torch import Tensor

RULE = "sinc6-hann"  # for fingerprints: with another rule a wave gets other codes
ZERO_CROSSINGS = 6  # on either side
ROLLOFF = 0.99
MAX_BLOCK = 1 << 22  # numbers that are multiplied at once; bounds the memory for long waves


def resample(wave: Tensor, sample_rate: int, target_rate: int) -> Tensor:
    """Bring a wave to `target_rate`: (samples,), float32 -> (ceil(samples * target_rate / sample_rate),), float32.

    Raises: ValueError for a rate that is not positive.
    """
    if sample_rate <= 0 or target_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {min(sample_rate, target_rate)}")
    if sample_rate == target_rate or not len(wave):
        return wave
    divisor = math.gcd(sample_rate, target_rate)
    old, new = sample_rate // divisor, target_rate // divisor  # every `old` samples become `new` ones, all alike
    filters, reach = _filters(old, new)
    windows = torch.nn.functional.pad(wave, (reach, reach + old)).unfold(0, len(filters), old)  # (rounds, taps), a view
    blocks = [block @ filters for block in windows.split(max(1, MAX_BLOCK // len(filters)))]
    return torch.cat(blocks).flatten()[: -(-len(wave) * new // old)]


@functools.lru_cache(maxsize=8)
def _filters(old: int, new: int) -> tuple[Tensor, int]:
    """Filters (old + 2 * reach, new) for the `new` samples of a round, and the samples read on either side of it."""
    cutoff = ROLLOFF * min(old, new)
    reach = math.ceil(ZERO_CROSSINGS * old / cutoff)
    taps = torch.arange(-reach, old + reach, dtype=torch.float64) / old
    moments = torch.arange(new) / new  # float32, as in the public function
    position = ((taps[:, None] - moments) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(position * math.pi / ZERO_CROSSINGS / 2) ** 2
    return (torch.sinc(position) * window * cutoff / old).float(), reach

"""An audio tokenizer whose codes are the 16-bit samples of a wave, so tests can choose the codes of a file."""

from pathlib import Path

import numpy as np
import soundfile


class ToyCodec:
    name = "toy"
    fingerprint = "toy-0"
    sample_rate = 16_000
    vocab_size = 16_384

    def encode(self, wave, sample_rate):
        assert sample_rate == self.sample_rate
        return (wave * 32768).round().int().tolist()


def make_toy_codec(device):
    return ToyCodec()


def write_codes(path: Path, codes) -> Path:
    """Write an audio file that ToyCodec encodes to `codes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(codes, dtype=np.int16), ToyCodec.sample_rate, subtype="PCM_16")
    return path

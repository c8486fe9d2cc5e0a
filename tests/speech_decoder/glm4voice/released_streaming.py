"""The streaming of the released GLM-4-Voice demo, composed of our flow and vocoder, for comparison only.

It computes every earlier mel again for each chunk, cross-fades with weights that do not add up to one, and repeats one
mel frame per chunk, which loses 256 samples for each chunk after the second. `SpeechDecoder.decode_chunk` does none of
these.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.hift import SourceNoise

OVERLAP_FRAMES = 34  # five codes


@dataclass
class ReleasedStream:
    codes: Tensor | None = None  # (1, time)
    mel: Tensor | None = None  # all mels returned, (1, bands, frames)
    overlap: Tensor | None = None  # (1, bands, 34)
    last_frame: Tensor | None = None  # (1, bands, 1)
    last_source: Tensor | None = None  # (1, 1, 256)


def released_chunk(
    decoder: SpeechDecoder, stream: ReleasedStream, codes: Tensor, *, final: bool, num_steps: int, has_noise: bool
) -> tuple[Tensor, Tensor]:
    """Decode the next codes (1, time) to mel (1, bands, frames) and wave (1, samples)."""
    generator = torch.Generator().manual_seed(42)
    all_codes = codes if stream.codes is None else torch.cat([stream.codes, codes], dim=1)
    noise = torch.randn(1, 80, decoder.flow.num_frames(all_codes.shape[1]), generator=generator)
    mel = decoder.flow.inference(all_codes, noise, num_steps=num_steps, prompt_mel=stream.mel)
    if stream.overlap is not None:
        rise, fall = torch.hamming_window(2 * OVERLAP_FRAMES, periodic=False, dtype=torch.float64).float().chunk(2)
        mel[:, :, :OVERLAP_FRAMES] = mel[:, :, :OVERLAP_FRAMES] * rise + stream.overlap * fall
    if stream.last_frame is not None:
        mel = torch.cat([stream.last_frame, mel], dim=2)
    if not final:
        mel, stream.overlap = mel[:, :, :-OVERLAP_FRAMES], mel[:, :, -OVERLAP_FRAMES:]
    wave, source = _vocode(decoder, mel, stream.last_source, generator if has_noise else None)
    stream.last_frame, stream.last_source = mel[:, :, -1:], source[:, :, -256:]
    stream.codes = all_codes
    stream.mel = mel if stream.mel is None else torch.cat([stream.mel, mel], dim=2)
    return mel, wave if final else wave[:, :-256]


def _vocode(
    decoder: SpeechDecoder, mel: Tensor, last_source: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    hift, num_samples = decoder.hift, mel.shape[2] * 256
    if generator is None:
        noise = SourceNoise(torch.zeros(1, 9, 1), torch.zeros(1, 9, num_samples))
    else:
        noise = hift.draw_noise(1, mel.shape[2], generator=generator)
    source = hift.make_source(hift.predict_f0(mel), noise)
    if last_source is not None:
        source[:, :, :256] = last_source
    return hift.synthesize(mel, source), source

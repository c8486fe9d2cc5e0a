"""Vocode a mel in pieces whose samples equal those of the whole mel up to rounding.

A stream carries the phase of its excitation and re-reads as much of the earlier mel as its samples depend on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .hift import HiFTGenerator, SourceNoise
from .noise import FrameNoise


@dataclass
class VocoderState:
    """State between pieces: made by `start_vocoder`, changed by `vocode`, owned by the caller."""

    phase: Tensor  # start phase of each harmonic, (1, harmonics, 1), radians
    noise: FrameNoise
    position: int  # frames finished
    cycles: Tensor  # cycles of the fundamental so far, (1,), float64
    mel: Tensor  # last finished frames, (1, bands, at most receptive_frames)
    source: Tensor  # their excitation, (1, 1, samples)


def start_vocoder(hift: HiFTGenerator, seed: int = 42) -> VocoderState:
    """Begin a stream of mel frames for `vocode`, with `seed` for its noise."""
    config, device = hift.config, hift.conv_pre.bias.device
    generator = torch.Generator().manual_seed(seed)
    phase = (torch.rand(1, config.nb_harmonics + 1, 1, generator=generator) * 2 - 1) * math.pi
    phase[:, 0] = 0
    return VocoderState(
        phase=phase.to(device),
        noise=FrameNoise((config.nb_harmonics + 1) * config.samples_per_frame, generator),
        position=0,
        cycles=torch.zeros(1, dtype=torch.float64, device=device),
        mel=torch.zeros(1, config.in_channels, 0, device=device),
        source=torch.zeros(1, 1, 0, device=device),
    )


@torch.inference_mode()
def vocode(hift: HiFTGenerator, state: VocoderState, mel: Tensor, num_new: int) -> Tensor:
    """Vocode the next frames of a stream.

    Args:
        mel: The frames that follow the finished ones, (1, bands, frames).
        num_new: Number of these frames to finish; the rest serve as look-ahead.
    Returns: (num_new * samples_per_frame,), float32, on the vocoder's device.
    """
    config, size = hift.config, hift.config.samples_per_frame
    num_old, num_frames = state.mel.shape[2], mel.shape[2]
    mel = torch.cat([state.mel, mel], dim=2)
    f0 = hift.predict_f0(mel)[:, num_old:]
    noise = state.noise.read(state.position, state.position + num_frames).to(mel.device)
    noise = noise.reshape(1, num_frames * size, -1).transpose(1, 2)  # (1, harmonics, samples)
    source = hift.make_source(f0, SourceNoise(state.phase, noise), state.cycles if state.position else None)
    source = torch.cat([state.source, source], dim=2)
    wave = hift.synthesize(mel, source)[0, num_old * size : (num_old + num_new) * size]
    end = num_old + num_new
    first = max(0, end - hift.receptive_frames)
    state.position += num_new
    state.cycles = state.cycles + f0[:, :num_new].double().sum(dim=1) * size / config.sampling_rate
    state.mel = mel[:, :, first:end]
    state.source = source[:, :, first * size : end * size]
    return wave

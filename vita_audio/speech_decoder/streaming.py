"""Shared parts of all streams: checks, voices, noise addressed by frame, and the vocoder's state.

A stream of mel carries the phase of its excitation and reads as much of the earlier mel again as its samples depend on,
so its pieces equal the wave of the whole mel up to rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from .flow_matching import Flow
from .hift import HiFTGenerator, SourceNoise


def check_codes(codes: Sequence[int], vocab_size: int) -> list[int]:
    """Return `codes` as a list of int.

    Raises: TypeError if one is not an integer, ValueError if one is not in 0..vocab_size - 1.
    """
    codes = [index(code) for code in codes]
    if wrong := [code for code in codes if not 0 <= code < vocab_size]:
        raise ValueError(f"audio codes must be in 0..{vocab_size - 1}, got {len(wrong)} others such as {wrong[:5]}")
    return codes


class Voice:
    """A speaker, as `decode` and `stream` of one codec take it; opaque to all other code. Made by `make_voice`."""


@dataclass(frozen=True)
class FlowVoice(Voice):
    """The voice of codecs with a flow decoder.

    Attributes:
        codes: Codes of a recording of the speaker; given together with `mel`.
        mel: Log-mel of the same recording, (bands, frames).
        embedding: Speaker embedding, (size,).
    """

    codes: Sequence[int] | None = None
    mel: Tensor | None = None
    embedding: Tensor | None = None

    def check(self, num_bands: int, embedding_size: int) -> None:
        """Raise ValueError if the parts do not fit each other or a decoder of these sizes."""
        if (self.codes is None) != (self.mel is None):
            raise ValueError("a voice must have both codes and mel or neither")
        if self.mel is not None and (self.mel.ndim != 2 or self.mel.shape[0] != num_bands):
            raise ValueError(f"the mel of a voice must have shape ({num_bands}, frames), got {tuple(self.mel.shape)}")
        if self.embedding is not None and self.embedding.shape != (embedding_size,):
            raise ValueError(
                f"a speaker embedding must have shape ({embedding_size},), got {tuple(self.embedding.shape)}"
            )

    def batched_embedding(self, device: torch.device) -> Tensor | None:
        """Return the embedding as float32, (1, size), on a device."""
        return None if self.embedding is None else self.embedding.float()[None].to(device)


class FrameNoise:
    """Standard normal noise, a fixed number of values per frame.

    Values depend only on the seed and the frame, not on device, chunk size or other streams.
    """

    def __init__(self, size: int, generator: torch.Generator | None, rows: Tensor | None = None):
        """Begin at frame 0.

        Args:
            size: Values per frame; a multiple of 16, because torch draws normal numbers in groups of 16.
            generator: CPU generator that nothing else uses. None: there is no noise beyond `rows`.
            rows: Noise of the first frames, (frames, size), if it has been drawn already.
        """
        if size % 16:
            raise ValueError(f"the number of values per frame must be a multiple of 16, got {size}")
        self.generator = generator
        self.first_frame = 0
        self.rows = torch.empty(0, size) if rows is None else rows

    def read(self, start: int, stop: int) -> Tensor:
        """Return the noise of frames `start` to `stop`, (stop - start, size), and forget the frames before `start`.

        Raises: ValueError for frames that were forgotten or that have no noise.
        """
        if start < self.first_frame:
            raise ValueError(f"noise before frame {self.first_frame} is gone, asked for frame {start}")
        missing = stop - self.first_frame - len(self.rows)
        if missing > 0:
            if self.generator is None:
                raise ValueError(f"noise was drawn for {stop - missing} frames, asked for {stop}")
            drawn = torch.randn(missing, self.rows.shape[1], generator=self.generator)
            self.rows = torch.cat([self.rows, drawn])
        self.rows = self.rows[start - self.first_frame :]
        self.first_frame = start
        return self.rows[: stop - start]


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
    return VocoderState(
        phase=hift.draw_noise(1, 0, generator=generator, device=device).phase,
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
    num_old = state.mel.shape[2]
    # Later frames influence only the fundamental; one more frame is for its glide.
    num_frames = min(mel.shape[2], num_new + hift.receptive_frames + 1)
    mel = torch.cat([state.mel, mel], dim=2)
    f0 = hift.predict_f0(mel)[:, num_old : num_old + num_frames]
    mel = mel[:, :, : num_old + num_frames]
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


class FlowDecoder(ABC):
    """Flow and vocoder in evaluation mode, with the vocoder's weights final; serves any number of streams.

    Attributes:
        sample_rate: Rate of the wave, Hz.
        frame_rate: Codes per second.
        vocab_size: Codes are 0..vocab_size - 1.
    """

    sample_rate: int
    frame_rate: float

    def __init__(self, flow: Flow, hift: HiFTGenerator):
        self.flow, self.hift = flow.eval(), hift.eval()
        self.hift.fold_weight_norm()
        self.vocab_size = flow.config.vocab_size
        self.device = flow.encoder_proj.weight.device

    @torch.inference_mode()
    def decode_chunk(self, state: Any, codes: Sequence[int], final: bool = False) -> Tensor:
        """Decode the next codes of a stream.

        Args:
            state: From `start`.
            codes: Any number of codes, including none.
            final: Whether these are the last codes.
        Returns: The finished samples, (samples,), float32, on the CPU; may be none.
        Raises: ValueError if a code is not in the vocabulary or the stream is finished; the state is then unchanged.
        """
        if state.is_finished:
            raise ValueError("this stream is finished; begin another one with start()")
        wave = self._decode_codes(state, check_codes(codes, self.vocab_size), final)
        state.is_finished = final
        return wave

    @abstractmethod
    def _decode_codes(self, state: Any, codes: list[int], final: bool) -> Tensor:
        """Decode checked codes of a stream that is not finished."""

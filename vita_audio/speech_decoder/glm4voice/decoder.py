"""The speech decoder of GLM-4-Voice: codes to a wave at 22,050 Hz, at once or as a stream.

Decoding at once is a stream of one chunk. A stream of several chunks comes close to it but is not equal, because the
flow's attention and normalisation read the whole utterance, of which a chunk has only its last codes and no future.
Therefore the last codes of a chunk are held back, computed again with the next chunk, and cross-faded. Each frame gets
the same random numbers in both cases, and no sample is lost.

The release seeds the global generator in every call, draws noise for the whole utterance at once and leaves dropout on.
Here noise is drawn frame by frame on the CPU from the stream's own generators, and modules are in evaluation mode. With
`released_noise`, `decode` draws the same numbers as the release.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vita_audio.files.permissions import restore_permissions
from vita_audio.speech_decoder.config import DecoderConfig
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.speech_decoder.mel import NUM_BANDS, SAMPLE_RATE
from vita_audio.speech_decoder.released_files import load_weights, read_config, write_config
from vita_audio.speech_decoder.streaming import (
    FlowDecoder,
    FlowVoice,
    FrameNoise,
    VocoderState,
    check_codes,
    start_vocoder,
    vocode,
)
from vita_audio.stopwatch import Stopwatch

from .flow import MaskedDiffWithXvec

# Frames by which the mel of a prompt may differ from its codes: tokenizers round the end up by a few codes.
MAX_PROMPT_MISMATCH = 20
MAX_WHOLE_CODES = 750  # one minute
CONTEXT_CODES = 40  # earlier codes that a chunk still reads
OVERLAP_CODES = 5  # codes at the end of a chunk that are held back until the next one


@dataclass
class SpeechDecoderState:
    """One audio stream: made by `SpeechDecoder.start`, changed by `decode_chunk`, owned by the caller."""

    num_steps: int
    has_prompt: bool
    embedding: Tensor | None
    mel_noise: FrameNoise
    vocoder: VocoderState
    codes: list[int] = field(default_factory=list)  # the window: context, then codes that are not fully decoded
    first_code: int = 0  # position of codes[0] in the stream, prompt included
    position: int = 0  # mel frames finished, prompt included
    mel: Tensor | None = None  # finished frames of the window, (1, bands, frames)
    held_back: Tensor | None = None  # frames after `position` as the last chunk made them, (1, bands, frames)
    is_finished: bool = False
    stopwatch: Stopwatch = field(default_factory=Stopwatch)  # of the stages flow and vocoder


class SpeechDecoder(FlowDecoder):
    """The decoder of GLM-4-Voice."""

    sample_rate = SAMPLE_RATE

    def __init__(self, config: DecoderConfig, flow: MaskedDiffWithXvec, hift: HiFTGenerator):
        super().__init__(flow, hift)
        self.config, self.frame_rate = config, config.flow.input_frame_rate

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> "SpeechDecoder":
        """Load `config.yaml` and the weights of flow and vocoder, each from `.safetensors` or else `.pt`.

        Raises: FileNotFoundError, or ValueError naming the file and its missing, unexpected or misshapen weights.
        """
        folder = Path(folder)
        config = read_config(folder / "config.yaml")
        with torch.device("meta"):
            flow, hift = MaskedDiffWithXvec(config.flow), HiFTGenerator(config.hift)
        load_weights(folder, "config.yaml", flow=flow, hift=hift)
        return cls(config, flow.to(device), hift.to(device))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.yaml`, `flow.safetensors` and `hift.safetensors`, the weights stored as `dtype`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(self.config, folder / "config.yaml")
        for name, module in (("flow", self.flow), ("hift", self.hift)):
            weights = {key: value.to("cpu", dtype).contiguous() for key, value in module.state_dict().items()}
            save_file(weights, folder / f"{name}.safetensors")
        restore_permissions(folder)

    def decode(
        self,
        codes: Sequence[int],
        voice: FlowVoice | None = None,
        *,
        num_steps: int = 10,
        seed: int = 42,
        released_noise: bool = False,
    ) -> Tensor:
        """Return the wave of all codes, (samples,), float32 in [-1, 1], on the CPU; other arguments as in `start`.

        Time and memory grow with the square of the length, so more than a minute is decoded as a stream.

        Args:
            released_noise: Draw the noise as the release does on a CPU, all at once and in its order, which gives the
                same wave; otherwise draw it as a stream with this seed does.
        """
        state = self.start(voice, num_steps=num_steps, seed=seed)
        if released_noise:
            self._draw_as_released(state, self.flow.num_frames(len(state.codes) + len(codes)), seed)
        pieces = [codes[first : first + MAX_WHOLE_CODES] for first in range(0, len(codes), MAX_WHOLE_CODES)]
        waves = [self.decode_chunk(state, piece) for piece in pieces[:-1]]
        return torch.cat([*waves, self.decode_chunk(state, pieces[-1] if pieces else [], final=True)])

    def start(self, voice: FlowVoice | None = None, *, num_steps: int = 10, seed: int = 42) -> SpeechDecoderState:
        """Begin a stream.

        Args:
            num_steps: Euler steps of the flow.
            seed: Seed for the random numbers of this stream.
        Raises: ValueError for a voice that does not fit or whose codes and mel differ in duration.
        """
        voice = voice or FlowVoice()
        voice.check(NUM_BANDS, self.config.flow.spk_embed_dim)
        codes, mel = self._prompt(voice.codes, voice.mel)
        return SpeechDecoderState(
            num_steps=num_steps,
            has_prompt=voice.mel is not None,
            embedding=voice.batched_embedding(self.device),
            mel_noise=FrameNoise(NUM_BANDS, torch.Generator().manual_seed(seed)),
            vocoder=start_vocoder(self.hift, seed + 1),
            codes=codes,
            position=mel.shape[2],
            mel=mel.to(self.device),
        )

    def _decode_codes(self, state: SpeechDecoderState, codes: list[int], final: bool) -> Tensor:
        window = state.codes + codes
        num_frames = self.flow.num_frames(state.first_code + len(window))
        held_frames = 0 if final else self.flow.num_frames(OVERLAP_CODES)
        num_new = max(0, num_frames - held_frames - state.position)
        if num_new == 0:
            state.codes = window
            return torch.zeros(0)
        with state.stopwatch.measure("flow", self.device):
            mel = self._continue_mel(state, window, num_frames)  # (1, bands, frames after state.position)
        with state.stopwatch.measure("vocoder"):
            wave = vocode(self.hift, state.vocoder, mel, num_new).cpu()
        state.mel = torch.cat([state.mel, mel[:, :, :num_new]], dim=2)
        state.held_back = mel[:, :, num_new:]
        state.position += num_new
        state.codes = window
        self._forget(state)
        return wave

    def _draw_as_released(self, state: SpeechDecoderState, num_frames: int, seed: int) -> None:
        """Draw all noise of a new stream, including its prompt's: first the flow's, then the vocoder's."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, NUM_BANDS, num_frames, generator=generator)
        source = self.hift.draw_noise(1, num_frames - state.position, generator=generator)
        state.mel_noise = FrameNoise(NUM_BANDS, None, noise[0].T)
        state.vocoder.phase = source.phase.to(self.device)
        rows = source.noise[0].T.reshape(num_frames - state.position, -1)  # (frames, samples * harmonics)
        state.vocoder.noise = FrameNoise(rows.shape[1], None, rows)

    def _prompt(self, codes: Sequence[int] | None, mel: Tensor | None) -> tuple[list[int], Tensor]:
        """Cut codes and mel of a voice prompt to the last code that both contain; the mel is (1, bands, frames)."""
        if codes is None:
            return [], torch.zeros(1, NUM_BANDS, 0)
        codes, num_frames = check_codes(codes, self.vocab_size), self.flow.num_frames(len(codes))
        if abs(mel.shape[1] - num_frames) > MAX_PROMPT_MISMATCH:
            raise ValueError(
                f"the mel of a voice of {len(codes)} codes must have shape ({NUM_BANDS}, {num_frames}), give or take "
                f"{MAX_PROMPT_MISMATCH} frames, got {tuple(mel.shape)}"
            )
        while num_frames > mel.shape[1]:
            codes = codes[:-1]
            num_frames = self.flow.num_frames(len(codes))
        return codes, mel[None, :, :num_frames].float()

    def _continue_mel(self, state: SpeechDecoderState, window: list[int], num_frames: int) -> Tensor:
        """Compute the mel from `state.position` to the end of the window, cross-faded with the frames held back."""
        held = state.held_back
        if held is not None and state.position + held.shape[2] == num_frames:
            return held  # there are no new codes
        start = self.flow.num_frames(state.first_code)
        noise = state.mel_noise.read(start, num_frames).T[None].to(self.device)  # (1, bands, frames of the window)
        mel = self.flow.inference(
            torch.tensor([window], device=self.device),
            noise,
            num_steps=state.num_steps,
            # With a prompt the earlier mel is one too, so that the voice persists once the prompt has left the context.
            # Without, the context is computed again from the same noise, which stays closer to decoding at once.
            prompt_mel=state.mel if state.has_prompt else None,
            embedding=state.embedding,
        )[:, :, state.position - num_frames :]
        if held is not None:
            num_faded = held.shape[2]
            rise = torch.arange(1, num_faded + 1, device=self.device) / (num_faded + 1)
            mel[:, :, :num_faded] = rise * mel[:, :, :num_faded] + (1 - rise) * held
        return mel

    def _forget(self, state: SpeechDecoderState) -> None:
        """Drop the codes and frames before the context.

        The window begins where an attention block of the encoder and a frame of the UNet's coarsest scale begin, so
        that both grids are aligned as in the whole utterance.
        """
        block_size = self.config.flow.encoder.block_size
        coarse_frame = 2 ** (len(self.config.flow.estimator.channels) - 1)
        num_frames = self.flow.num_frames
        first_code = (state.first_code + len(state.codes) - CONTEXT_CODES) // block_size * block_size
        while first_code > state.first_code and num_frames(first_code) % coarse_frame:
            first_code -= block_size
        if first_code > state.first_code:
            state.codes = state.codes[first_code - state.first_code :]
            state.mel = state.mel[:, :, num_frames(first_code) - num_frames(state.first_code) :]
            state.first_code = first_code

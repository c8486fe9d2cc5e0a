"""Decode audio codes to a wave, at once or as a stream.

Decoding at once is a stream of one chunk, so both run the same code. How close a stream of several chunks comes to it:

* Each frame gets the same random numbers in both. Given the same mel, the vocoder gives the same samples up to
  rounding: it carries the phase of its excitation and re-reads as much mel as its samples depend on.
* The mel itself is close but not equal: the flow's attention and normalisation read the whole utterance, of which a
  chunk has only the last `context_codes` and none of the future. Therefore the last `overlap_codes` of a chunk are held
  back, computed again with the next chunk, and cross-faded.
* The work per chunk is bounded by its size and the context. No sample is lost: the chunks add up to the whole length.

The released decoder seeds the global generator in every call, draws noise for the whole utterance at once and leaves
dropout on. Here noise is drawn frame by frame on the CPU from the stream's own generators, and modules are always in
evaluation mode. With `released_noise`, `decode` draws the same numbers as the release.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vita_audio.speech_decoder.config import DecoderConfig
from vita_audio.speech_decoder.config_file import read_config, write_config
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.speech_decoder.inputs import check_codes, check_voice
from vita_audio.speech_decoder.mel import NUM_BANDS, SAMPLE_RATE
from vita_audio.speech_decoder.noise import FrameNoise
from vita_audio.speech_decoder.vocoder import VocoderState, start_vocoder, vocode
from vita_audio.speech_decoder.weights import load_weights

from .flow import MaskedDiffWithXvec

# Frames by which the mel of a prompt may differ from its codes: tokenizers round the end up by a few codes.
MAX_PROMPT_MISMATCH = 20
MAX_WHOLE_CODES = 750  # one minute


@dataclass
class SpeechDecoderState:
    """One audio stream: made by `SpeechDecoder.start`, changed by `decode_chunk`, owned by the caller."""

    num_steps: int
    context_codes: int
    overlap_codes: int
    condition_on_past: bool
    embedding: Tensor | None
    mel_noise: FrameNoise
    vocoder: VocoderState
    codes: list[int] = field(default_factory=list)  # the window: context, then codes that are not fully decoded
    first_code: int = 0  # position of codes[0] in the stream, prompt included
    position: int = 0  # mel frames finished, prompt included
    mel: Tensor | None = None  # finished frames of the window, (1, bands, frames)
    held_back: Tensor | None = None  # frames after `position` as the last chunk made them, (1, bands, frames)
    is_finished: bool = False


class SpeechDecoder:
    """Flow and vocoder in evaluation mode; serves any number of streams.

    Attributes:
        sample_rate: Rate of the wave, Hz.
        frame_rate: Codes per second.
        vocab_size: Codes are 0..vocab_size - 1.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, config: DecoderConfig, flow: MaskedDiffWithXvec, hift: HiFTGenerator):
        self.config = config
        self.flow = flow.eval()
        self.hift = hift.eval()
        self.frame_rate = config.flow.input_frame_rate
        self.vocab_size = config.flow.vocab_size
        self.device = flow.encoder_proj.weight.device

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> "SpeechDecoder":
        """Load `config.yaml` and the weights of flow and vocoder, each from `.safetensors` or else `.pt`.

        Raises: FileNotFoundError, or ValueError naming the file and its missing, unexpected or misshapen weights.
        """
        folder = Path(folder)
        config = read_config(folder / "config.yaml")
        with torch.device("meta"):
            flow, hift = MaskedDiffWithXvec(config.flow), HiFTGenerator(config.hift)
        load_weights(flow, folder, "flow")
        load_weights(hift, folder, "hift")
        return cls(config, flow.to(device), hift.to(device))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.yaml`, `flow.safetensors` and `hift.safetensors`, the weights stored as `dtype`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(self.config, folder / "config.yaml")
        for name, module in (("flow", self.flow), ("hift", self.hift)):
            weights = {key: value.to("cpu", dtype).contiguous() for key, value in module.state_dict().items()}
            save_file(weights, folder / f"{name}.safetensors")

    def decode(
        self,
        codes: Sequence[int],
        *,
        num_steps: int = 10,
        seed: int = 42,
        prompt_codes: Sequence[int] | None = None,
        prompt_mel: Tensor | None = None,
        embedding: Tensor | None = None,
        released_noise: bool = False,
    ) -> Tensor:
        """Return the wave of all codes, (samples,), float32 in [-1, 1], on the CPU; other arguments as in `start`.

        Time and memory grow with the square of the length, so more than a minute is decoded as a stream.

        Args:
            released_noise: Draw the noise as the release does on a CPU, all at once and in its order, which gives the
                same wave; otherwise draw it as a stream with this seed does.
        """
        state = self.start(
            num_steps=num_steps, seed=seed, prompt_codes=prompt_codes, prompt_mel=prompt_mel, embedding=embedding
        )
        if released_noise:
            self._draw_as_released(state, self.flow.num_frames(len(state.codes) + len(codes)), seed)
        pieces = [codes[first : first + MAX_WHOLE_CODES] for first in range(0, len(codes), MAX_WHOLE_CODES)]
        waves = [self.decode_chunk(state, piece) for piece in pieces[:-1]]
        return torch.cat([*waves, self.decode_chunk(state, pieces[-1] if pieces else [], final=True)])

    def start(
        self,
        *,
        num_steps: int = 10,
        seed: int = 42,
        context_codes: int = 50,
        overlap_codes: int = 5,
        condition_on_past: bool = False,
        prompt_codes: Sequence[int] | None = None,
        prompt_mel: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> SpeechDecoderState:
        """Begin a stream.

        Args:
            num_steps: Euler steps of the flow.
            seed: Seed for the random numbers of this stream.
            context_codes: Number of earlier codes that a chunk still reads.
            overlap_codes: Codes at the end of a chunk that are held back until the next one.
            condition_on_past: Give the flow its earlier mel as a prompt, as the released decoder does. Otherwise it
                computes the context again from the same noise, which stays closer to decoding at once. Always true with
                a voice prompt, so that the voice persists once the prompt has left the context.
            prompt_codes: Codes of a recording of the voice; given together with `prompt_mel`.
            prompt_mel: Log-mel of the same recording, (bands, frames).
            embedding: Speaker embedding, (spk_embed_dim,).
        Raises: ValueError if only one half of the prompt is given, its halves differ in duration, the embedding has
            another shape, or context_codes < overlap_codes.
        """
        size = self.config.flow.spk_embed_dim
        check_voice(prompt_codes, prompt_mel, embedding, num_bands=NUM_BANDS, embedding_size=size)
        if not context_codes >= overlap_codes >= 0:
            raise ValueError(
                f"context_codes must not be less than overlap_codes, got {context_codes} and {overlap_codes}"
            )
        codes, mel = self._prompt(prompt_codes, prompt_mel)
        return SpeechDecoderState(
            num_steps=num_steps,
            context_codes=context_codes,
            overlap_codes=overlap_codes,
            condition_on_past=condition_on_past or prompt_mel is not None,
            embedding=None if embedding is None else embedding.float()[None].to(self.device),
            mel_noise=FrameNoise(NUM_BANDS, torch.Generator().manual_seed(seed)),
            vocoder=start_vocoder(self.hift, seed + 1),
            codes=codes,
            position=mel.shape[2],
            mel=mel.to(self.device),
        )

    @torch.inference_mode()
    def decode_chunk(self, state: SpeechDecoderState, codes: Sequence[int], final: bool = False) -> Tensor:
        """Decode the next codes of a stream.

        Args:
            codes: Any number of codes, including none.
            final: Whether these are the last codes; the codes that were held back are then decoded too.
        Returns: The finished samples, (samples,), float32, on the CPU; may be none.
        Raises: ValueError if a code is not in the vocabulary or the stream is finished; the state is then unchanged.
        """
        if state.is_finished:
            raise ValueError("this stream is finished; begin another one with start()")
        window = state.codes + check_codes(codes, self.vocab_size)
        num_codes = state.first_code + len(window)
        num_frames = self.flow.num_frames(num_codes)
        held_frames = 0 if final else self.flow.num_frames(state.overlap_codes)
        num_new = max(0, num_frames - held_frames - state.position)
        if num_new == 0:
            state.codes, state.is_finished = window, final
            return torch.zeros(0)
        mel = self._continue_mel(state, window, num_frames)  # (1, bands, frames after state.position)
        wave = vocode(self.hift, state.vocoder, mel, num_new)
        state.mel = torch.cat([state.mel, mel[:, :, :num_new]], dim=2)
        state.held_back = mel[:, :, num_new:]
        state.position += num_new
        state.codes, state.is_finished = window, final
        self._forget(state)
        return wave.cpu()

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
                f"prompt_mel of {len(codes)} codes must have shape ({NUM_BANDS}, {num_frames}), give or take "
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
            prompt_mel=state.mel if state.condition_on_past else None,
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
        first_code = (state.first_code + len(state.codes) - state.context_codes) // block_size * block_size
        while first_code > state.first_code and num_frames(first_code) % coarse_frame:
            first_code -= block_size
        if first_code > state.first_code:
            state.codes = state.codes[first_code - state.first_code :]
            state.mel = state.mel[:, :, num_frames(first_code) - num_frames(state.first_code) :]
            state.first_code = first_code

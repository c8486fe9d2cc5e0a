"""CosyVoice 2: codes to a wave at 24 kHz, at once or as a stream.

Decoding at once uses full attention, as in the public VITA-Audio tokenizer. A stream decodes chunks of 25 codes, each
once the three codes after it have arrived. Its attention covers earlier chunks and the current one, so a stream gives
exactly the wave of `decode` with `is_chunked`, as long as the utterance fits into the stream's context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vita_audio.speech_decoder.config import EncoderConfig, EstimatorConfig, HiFTConfig
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.speech_decoder.mel import MelSettings
from vita_audio.speech_decoder.released_files import load_weights, read_fields, read_values
from vita_audio.speech_decoder.streaming import FlowDecoder, FlowVoice, VocoderState, check_codes, start_vocoder, vocode
from vita_audio.stopwatch import Stopwatch

from .flow import (
    CODE_RATE,
    FRAMES_PER_CODE,
    LOOKAHEAD_CODES,
    CosyVoice2Flow,
    CosyVoice2FlowConfig,
    released_noise,
)

CONFIG_NAME = "cosyvoice2.yaml"
MEL = MelSettings(sample_rate=24_000, hop_length=480, fft_size=1920)
F0_LOOKAHEAD = 6  # frames: five for the predictor of the fundamental, one for the glide between two frames
MAX_WHOLE_CODES = 750  # 30 s
CONTEXT_CODES = 500  # 20 s


@dataclass
class CosyVoice2State:
    """One audio stream: made by `CosyVoice2Decoder.start`, changed by `decode_chunk`, owned by the caller."""

    num_steps: int
    is_chunked: bool
    embedding: Tensor | None
    prompt_codes: list[int]
    prompt_mel: Tensor  # (1, bands, frames of the prompt codes)
    vocoder: VocoderState
    codes: list[int] = field(default_factory=list)  # from `first` on
    first: int = 0  # position in the stream of codes[0], prompt not counted
    position: int = 0  # codes that became mel
    mel: Tensor | None = None  # mel that is not vocoded yet, (1, bands, frames)
    is_finished: bool = False
    stopwatch: Stopwatch = field(default_factory=Stopwatch)  # of the stages flow and vocoder


class CosyVoice2Decoder(FlowDecoder):
    """The decoder of CosyVoice 2."""

    sample_rate = MEL.sample_rate
    frame_rate = CODE_RATE

    def __init__(self, flow: CosyVoice2Flow, hift: HiFTGenerator):
        """Combine flow and vocoder. Raises: ValueError if the vocoder does not fit the flow."""
        mel = (hift.config.sampling_rate, hift.config.samples_per_frame, hift.config.in_channels)
        if mel != (MEL.sample_rate, MEL.hop_length, flow.config.num_bands):
            raise ValueError(
                f"the vocoder must read {flow.config.num_bands} bands and make {MEL.hop_length} samples of a frame at "
                f"{MEL.sample_rate} Hz, got sampling_rate, samples per frame, in_channels = {mel}"
            )
        super().__init__(flow, hift)
        self._noise = released_noise(flow.config.num_bands).to(self.device)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> "CosyVoice2Decoder":
        """Load `cosyvoice2.yaml` and the weights of flow and vocoder, each from `.safetensors` or else `.pt`.

        Raises: FileNotFoundError, or ValueError naming the file and what is missing or wrong in it.
        """
        folder = Path(folder)
        flow_config, hift_config = read_sizes(folder / CONFIG_NAME)
        with torch.device("meta"):
            flow, hift = CosyVoice2Flow(flow_config), HiFTGenerator(hift_config)
        load_weights(folder, CONFIG_NAME, flow=flow, hift=hift)
        return cls(flow.to(device), hift.to(device))

    def decode(
        self,
        codes: Sequence[int],
        voice: FlowVoice | None = None,
        *,
        num_steps: int = 10,
        seed: int = 42,
        is_chunked: bool = False,
    ) -> Tensor:
        """Return the wave of all codes, (960 * codes,), float32 in [-1, 1], on the CPU; arguments as in `start`.

        More than 30 s are decoded as a stream, because the cost of full attention grows with the square of the length.
        """
        state = self.start(voice, num_steps=num_steps, seed=seed)
        state.is_chunked = is_chunked or len(codes) > MAX_WHOLE_CODES
        return self.decode_chunk(state, codes, final=True)

    def start(self, voice: FlowVoice | None = None, *, num_steps: int = 10, seed: int = 42) -> CosyVoice2State:
        """Begin a stream.

        Args:
            voice: Its mel has the settings `MEL`. The longer one of its codes and mel is cut to the shorter.
            num_steps: Euler steps of the flow.
            seed: Seed for the vocoder's random numbers.
        Raises: ValueError for a voice that does not fit.
        """
        voice, bands = voice or FlowVoice(), self.flow.config.num_bands
        voice.check(bands, self.flow.config.spk_embed_dim)
        prompt_codes, mel = ([], torch.zeros(bands, 0)) if voice.mel is None else (voice.codes, voice.mel)
        num_codes = min(len(prompt_codes), mel.shape[1] // FRAMES_PER_CODE)
        return CosyVoice2State(
            num_steps=num_steps,
            is_chunked=True,
            embedding=voice.batched_embedding(self.device),
            prompt_codes=check_codes(prompt_codes[:num_codes], self.vocab_size),
            prompt_mel=mel[None, :, : num_codes * FRAMES_PER_CODE].float().to(self.device),
            vocoder=start_vocoder(self.hift, seed),
            mel=torch.zeros(1, bands, 0, device=self.device),
        )

    def _decode_codes(self, state: CosyVoice2State, codes: list[int], final: bool) -> Tensor:
        state.codes = state.codes + codes
        num_codes, chunk_size = state.first + len(state.codes), self.flow.config.encoder.block_size
        if final and not state.is_chunked:
            self._make_mel(state, num_codes)
        while state.is_chunked:
            # Chunks begin with the prompt.
            stop = state.position + chunk_size - (len(state.prompt_codes) + state.position) % chunk_size
            if stop + LOOKAHEAD_CODES > num_codes:
                break
            self._make_mel(state, stop)
        if final and state.position < num_codes:
            self._make_mel(state, num_codes)
        return self._make_wave(state, final)

    def _make_mel(self, state: CosyVoice2State, stop: int) -> None:
        """Append the mel of the codes up to `stop`, the end of a chunk or of the stream."""
        prompt, num_new = len(state.prompt_codes), stop - state.position
        if not num_new:
            return
        window, future = state.codes[: stop - state.first], state.codes[stop - state.first :][:LOOKAHEAD_CODES]
        begin = FRAMES_PER_CODE * (prompt + state.first)
        frames = torch.cat(
            [torch.arange(FRAMES_PER_CODE * prompt), torch.arange(begin, FRAMES_PER_CODE * (prompt + stop))]
        )
        with state.stopwatch.measure("flow", self.device):
            mel = self.flow.inference(
                torch.tensor([state.prompt_codes + window], device=self.device),
                self._noise[:, :, (frames % self._noise.shape[2]).to(self.device)],
                future=torch.tensor([future], dtype=torch.long, device=self.device),
                prompt_mel=state.prompt_mel,
                embedding=state.embedding,
                num_steps=state.num_steps,
                is_chunked=state.is_chunked,
            )
        state.mel = torch.cat([state.mel, mel[:, :, -FRAMES_PER_CODE * num_new :]], dim=2)
        state.position = stop
        chunk_size = self.flow.config.encoder.block_size
        if state.is_chunked and (surplus := (stop - state.first - CONTEXT_CODES) // chunk_size * chunk_size) > 0:
            state.codes, state.first = state.codes[surplus:], state.first + surplus

    def _make_wave(self, state: CosyVoice2State, final: bool) -> Tensor:
        """Vocode the frames whose look-ahead is available (all of them if `final`)."""
        num_new = state.mel.shape[2] - (0 if final else self.hift.receptive_frames + F0_LOOKAHEAD)
        if num_new <= 0:
            return torch.zeros(0)
        with state.stopwatch.measure("vocoder"):
            wave = vocode(self.hift, state.vocoder, state.mel, num_new).cpu()
        state.mel = state.mel[:, :, num_new:]
        return wave


def read_sizes(path: Path) -> tuple[CosyVoice2FlowConfig, HiFTConfig]:
    """Read the sizes of flow and vocoder from a released `cosyvoice2.yaml` without executing anything in it.

    Raises: FileNotFoundError; ValueError naming the file and the block that is missing or does not fit.
    """
    values = read_values(path)
    try:
        flow, hift = dict(values["flow"]), dict(values["hift"])
        encoder, estimator = dict(flow["encoder"]), dict(flow["decoder"]["estimator"])
        encoder["block_size"] = encoder["static_chunk_size"]
        hift |= hift["istft_params"] | {"f0_channels": hift["f0_predictor"]["cond_channels"]}
        fixed = {"token_mel_ratio": FRAMES_PER_CODE, "pre_lookahead_len": LOOKAHEAD_CODES}
        if unlike := {key: flow[key] for key, value in fixed.items() if flow.get(key, value) != value}:
            raise ValueError(f"flow must have {fixed}, got {unlike}")
        config = CosyVoice2FlowConfig(
            vocab_size=flow["vocab_size"],
            spk_embed_dim=flow["spk_embed_dim"],
            num_bands=flow["output_size"],
            encoder=read_fields(EncoderConfig, encoder, "flow.encoder"),
            estimator=read_fields(EstimatorConfig, estimator, "flow.decoder.estimator"),
        )
        return config, read_fields(HiFTConfig, hift, "hift")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe the flow and hift of CosyVoice 2: {error!r}") from error

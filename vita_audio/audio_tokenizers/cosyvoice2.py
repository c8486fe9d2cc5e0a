"""CosyVoice 2: S3 codes at 25 per second, flow and vocoder to 24 kHz.

The public `s3tokenizer` package makes the codes with the weights of `speech_tokenizer_v2.onnx`, longer audio in
overlapping windows of 30 s; flow and vocoder are in `speech_decoder.cosyvoice2`. All files are those of
`CosyVoice2-0.5B`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vita_audio.files.checkpoint import check_whole
from vita_audio.files.tensors import fill_module, find_file, read_tensors
from vita_audio.optional import require
from vita_audio.resample import RULE as RESAMPLING_RULE
from vita_audio.resample import resample
from vita_audio.speech_decoder.cosyvoice2.decoder import CONFIG_NAME, MEL, CosyVoice2Decoder
from vita_audio.speech_decoder.mel import mel_spectrogram
from vita_audio.speech_decoder.streaming import FlowVoice
from vita_audio.speech_features import fbank
from vita_audio.stopwatch import Stopwatch

from .base import AudioStream, AudioTokenizer, fingerprint

NAME = "cosyvoice2"
TOKENIZER_FILES = [f"speech_tokenizer_v2{suffix}" for suffix in (".safetensors", ".pt", ".onnx")]  # released: .onnx
SPEAKER_FILE = "campplus.onnx"
SAMPLES_PER_CODE = 640
HEAD_SIZE = 64
HUB_FILES = (  # the repository also has a language model, and the same weights in other formats
    *TOKENIZER_FILES,
    *(f"{part}{suffix}" for part in ("flow", "hift") for suffix in (".safetensors", ".pt")),
    CONFIG_NAME,
    SPEAKER_FILE,
)

_require = partial(
    require,
    purpose=f"the audio tokenizer {NAME}",
    install=f"'vita-audio[{NAME}]'",
    unused=["torchaudio"],  # s3tokenizer reads audio files with it; we read them ourselves
)


def povey_window(size: int, *, periodic: bool) -> Tensor:
    return torch.hann_window(size, periodic=periodic) ** 0.85


class SpeakerEncoder:
    """CAM++ speaker embeddings. Needs the package onnxruntime."""

    def __init__(self, path: Path):
        check_whole(path)
        onnxruntime = _require("onnxruntime")
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, wave: Tensor) -> Tensor:
        """Return the embedding of a wave, (samples,) at 16 kHz: (192,)."""
        features = fbank(wave, povey_window)  # (frames, 80)
        features = (features - features.mean(dim=0))[None].numpy()
        (embedding,) = self._session.run(None, {self._session.get_inputs()[0].name: features})
        return torch.from_numpy(embedding).flatten()


class CosyVoice2Tokenizer(AudioTokenizer):
    """S3 speech tokenizer and the decoder of CosyVoice 2."""

    name = NAME
    released_as = "FunAudioLLM/CosyVoice2-0.5B"
    hub_files = HUB_FILES
    voice_class = FlowVoice
    sample_rate = 16_000
    output_rate = CosyVoice2Decoder.sample_rate
    frame_rate = CosyVoice2Decoder.frame_rate

    def __init__(
        self,
        speech_tokenizer: nn.Module,
        decoder: CosyVoice2Decoder | None = None,
        speaker_encoder: SpeakerEncoder | None = None,
        *,
        num_steps: int = 10,
        seed: int = 42,
        stream_chunks: Sequence[int] | None = None,
    ):
        """Combine speech tokenizer and decoder.

        Args:
            decoder: None: only `encode` works.
            speaker_encoder: None: voices have no speaker embedding.
            num_steps: Euler steps of the flow.
            seed: Seed for the vocoder's noise; the flow's noise is the released one.
            stream_chunks: Must be None; the flow was trained for chunks of one size.
        Raises: ValueError if tokenizer and decoder do not belong together.
        """
        if stream_chunks is not None:
            raise ValueError(f"{NAME} streams in chunks of 25 codes, got stream_chunks {stream_chunks}; leave them out")
        self.speech_tokenizer = speech_tokenizer.eval().requires_grad_(False)
        self.vocab_size = speech_tokenizer.config.n_codebook_size
        if decoder is not None and decoder.vocab_size != self.vocab_size:
            raise ValueError(
                f"the decoder must have {self.vocab_size} codes, got {decoder.vocab_size}; load both from one folder"
            )
        self.decoder, self.speaker_encoder = decoder, speaker_encoder
        self.num_steps, self.seed = num_steps, seed

    @classmethod
    def _load(cls, folder: Path, decoder_folder: Path | None, device: str, **options) -> CosyVoice2Tokenizer:
        speech_tokenizer = _load_speech_tokenizer(folder).to(device)
        if decoder_folder is None:
            return cls(speech_tokenizer, **options)
        speaker_file = decoder_folder / SPEAKER_FILE
        speaker = SpeakerEncoder(speaker_file) if speaker_file.is_file() else None
        return cls(speech_tokenizer, CosyVoice2Decoder.from_pretrained(decoder_folder, device), speaker, **options)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.name, [RESAMPLING_RULE], self.speech_tokenizer.state_dict())

    def _stream(self, voice: FlowVoice | None, stopwatch: Stopwatch) -> AudioStream:
        decoder = self._need_decoder()
        state = decoder.start(voice, num_steps=self.num_steps, seed=self.seed)
        state.stopwatch = stopwatch
        return AudioStream(partial(decoder.decode_chunk, state), self.vocab_size)

    def _decode(self, codes: list[int], voice: FlowVoice | None) -> Tensor:
        return self._need_decoder().decode(codes, voice, num_steps=self.num_steps, seed=self.seed)

    def _make_voice(self, wave: Tensor) -> FlowVoice:
        mel = mel_spectrogram(resample(wave, self.sample_rate, self.output_rate)[None], MEL)[0]
        embedding = None if self.speaker_encoder is None else self.speaker_encoder(wave)
        return FlowVoice(codes=self._encode([wave])[0], mel=mel, embedding=embedding)

    @torch.inference_mode()
    def _encode_one(self, wave: Tensor) -> list[int]:
        utils = _require("s3tokenizer.utils")
        wave = nn.functional.pad(wave, (0, max(0, SAMPLES_PER_CODE - len(wave))))
        mel = utils.log_mel_spectrogram(wave, self.speech_tokenizer.config.n_mels)  # (bands, frames)
        device = self.speech_tokenizer.device
        codes, lengths = self.speech_tokenizer.quantize(mel[None].to(device), torch.tensor([mel.shape[1]]).to(device))
        return codes[0, : int(lengths[0])].tolist()


def _load_speech_tokenizer(folder: Path) -> nn.Module:
    """Load an `S3TokenizerV2`, whose sizes are those of its weights.

    Raises: FileNotFoundError; ValueError for a damaged file or other weights.
    """
    model_v2 = _require("s3tokenizer.model_v2")
    path = find_file(folder, *TOKENIZER_FILES)
    check_whole(path)
    weights = model_v2.onnx2torch(str(path)) if path.suffix == ".onnx" else read_tensors(path)
    if "encoder.conv1.weight" not in weights:
        raise ValueError(f"{path} holds no S3 tokenizer: encoder.conv1.weight is missing; get it again")
    num_state, num_mels, _ = weights["encoder.conv1.weight"].shape
    config = model_v2.ModelConfig(
        n_mels=num_mels,
        n_audio_state=num_state,
        n_audio_head=num_state // HEAD_SIZE,
        n_audio_layer=sum(name.endswith("attn_ln.weight") for name in weights),
    )
    with torch.random.fork_rng(devices=[]):
        model = model_v2.S3TokenizerV2("speech_tokenizer_v2_25hz", config)
    fill_module(model, weights, path, "an S3 tokenizer of its sizes")
    return model

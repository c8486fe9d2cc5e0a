"""BiCodec of Spark-TTS: 50 semantic codes per second carry the words, 32 global codes the speaker.

The model is from the package `spark-tts-lib` (arXiv 2503.01710); the weights are those of `SparkAudio/Spark-TTS-0.5B`,
with `BiCodec` and `wav2vec2-large-xlsr-53` in one folder. Only semantic codes become tokens of a language model; the
global codes form a voice, which decoding requires.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vita_audio.files.checkpoint import read_yaml
from vita_audio.files.tensors import fill_module, load_model, read_tensors
from vita_audio.optional import require
from vita_audio.resample import RULE as RESAMPLING_RULE
from vita_audio.speech_decoder.mel import MelSettings, mel_filters
from vita_audio.speech_decoder.streaming import check_codes

from .base import Voice, check_chunk_sizes, fingerprint
from .windowed import WindowedTokenizer, reach

NAME = "sparktts"
PACKAGE = "spark_tts_lib"
SPEECH_MODEL = "wav2vec2-large-xlsr-53"
SPEECH_LAYERS = (11, 14, 16)  # their hidden states are averaged
VOICE_SIZE = 32  # global codes
VOICE_VOCAB_SIZE = 4096
MIN_SAMPLES = 400  # samples that the speech model needs for its first code
SECONDS_PER_PIECE = 60  # audio up to this length is encoded at once, as in the package; longer audio in pieces
CODES_PER_PIECE = 1500  # 30 s
STREAM_CHUNKS = (10, 50)  # codes

_require = partial(
    require, purpose=f"the audio tokenizer {NAME}", install=f"'vita-audio[{NAME}]'", unused=["torchaudio"]
)


@dataclass(frozen=True)
class SparkTTSVoice(Voice):
    """The global codes of a speaker: 32 codes in 0..4095.

    Raises: ValueError, TypeError for anything else.
    """

    codes: Sequence[int]

    def __post_init__(self):
        object.__setattr__(self, "codes", tuple(check_codes(self.codes, VOICE_VOCAB_SIZE)))
        if len(self.codes) != VOICE_SIZE:
            raise ValueError(f"a voice must have {VOICE_SIZE} codes, got {len(self.codes)}; make one with make_voice")


def make_bicodec(config: dict[str, Any]) -> nn.Module:
    """Make a BiCodec with random weights from the `audio_tokenizer` block of its `config.yaml`.

    `_mel_spectrogram` replaces its own, which needs torchaudio.
    """
    package = _require(f"{PACKAGE}.models.bicodec")

    class BiCodec(package.BiCodec):
        def init_mel_transformer(self, settings: dict[str, Any]) -> None:
            self.mel_transformer = partial(_mel_spectrogram, settings)

    return BiCodec(
        mel_params=config["mel_params"],
        encoder=package.Encoder(**config["encoder"]),
        quantizer=package.FactorizedVectorQuantize(**config["quantizer"]),
        prenet=package.Decoder(**config["prenet"]),
        postnet=package.Decoder(**config["postnet"]),
        decoder=package.WaveGenerator(**config["decoder"]),
        speaker_encoder=package.SpeakerEncoder(**config["speaker_encoder"]),
    )


def _mel_spectrogram(settings: dict[str, Any], wave: Tensor) -> Tensor:
    """Return the magnitude mel spectrogram of (batch, samples): (batch, bands, samples // hop + 1)."""
    size, window_size = settings["n_fft"], settings["win_length"]
    window = torch.hann_window(window_size, device=wave.device)
    spectrum = torch.stft(wave, size, settings["hop_length"], window_size, window, return_complex=True)
    mel = MelSettings(
        sample_rate=settings["sample_rate"],
        num_bands=settings["num_mels"],
        fft_size=size,
        min_frequency=settings["mel_fmin"],
        max_frequency=settings["mel_fmax"] or settings["sample_rate"] / 2,
    )
    return mel_filters(mel).to(wave.device) @ spectrum.abs()


class SparkTTSTokenizer(WindowedTokenizer):
    """A wav2vec 2.0 model followed by BiCodec, in evaluation mode."""

    name = NAME
    released_as = "SparkAudio/Spark-TTS-0.5B"
    has_one_folder = True
    voice_class = SparkTTSVoice
    codes_per_piece = CODES_PER_PIECE

    def __init__(
        self,
        bicodec: nn.Module,
        speech_model: Wav2Vec2Model,
        feature_extractor: Wav2Vec2FeatureExtractor,
        config: dict[str, Any],
        *,
        voice: SparkTTSVoice | None = None,
        stream_chunks: Sequence[int] = STREAM_CHUNKS,
    ):
        """Combine speech model and codec.

        Args:
            bicodec: From `make_bicodec`.
            speech_model: Its hidden states are the codec's input.
            feature_extractor: Normalises waves for the speech model.
            config: Values of the `config.yaml` at the top of the folder.
            voice: Default voice for decoding.
            stream_chunks: Codes in the first, second, ... chunk of a stream; the last size repeats.
        Raises: ValueError for a voice of another codec, or chunks that are not positive.
        """
        self.bicodec = bicodec.eval().requires_grad_(False)
        self.speech_model = speech_model.eval().requires_grad_(False)
        self.feature_extractor, self.config = feature_extractor, config
        self.check_voice(voice)
        self.voice = voice
        self.needs_voice = voice is None
        self.stream_chunks = check_chunk_sizes(stream_chunks)
        self.sample_rate = self.output_rate = config["sample_rate"]
        self.samples_per_group = config["latent_hop_length"]
        self.frame_rate = self.sample_rate / self.samples_per_group
        self.vocab_size = bicodec.quantizer.codebook_size
        self.context_groups = math.ceil(reach([*bicodec.prenet.modules(), *bicodec.decoder.modules()]))

    @classmethod
    def _load(cls, folder: Path, decoder_folder: Path | None, device: str, **options) -> SparkTTSTokenizer:
        with torch.random.fork_rng(devices=[]):  # third-party modules draw random weights before loading
            bicodec = make_bicodec(read_yaml(folder / "BiCodec" / "config.yaml")["audio_tokenizer"])
            weights = folder / "BiCodec" / "model.safetensors"
            fill_module(bicodec, read_tensors(weights), weights, str(weights.with_name("config.yaml")))
            # The checkpoint may have additional weights, such as the heads of its training.
            source = folder / SPEECH_MODEL
            speech_model, _ = load_model(Wav2Vec2Model, source, ignored=["unexpected"], dtype=torch.float32)
        return cls(
            bicodec.to(device),
            speech_model.to(device),
            Wav2Vec2FeatureExtractor.from_pretrained(source),
            read_yaml(folder / "config.yaml"),
            **options,
        )

    @cached_property
    def fingerprint(self) -> str:
        codec, speech = self.bicodec.state_dict(), self.speech_model.state_dict()
        used = {name: value for name, value in codec.items() if name.startswith(("encoder.", "quantizer."))}
        settings = [RESAMPLING_RULE, self.config["volume_normalize"], self.feature_extractor.do_normalize]
        return fingerprint(self.name, settings, used | speech)

    def _window_decoder(self, voice: SparkTTSVoice | None) -> Callable[[list[int], int], Tensor]:
        voice = voice or self.voice
        if voice is None:
            raise ValueError(
                f"{NAME} codes do not determine the speaker; give a voice, made with make_voice from a recording, or "
                "load the tokenizer with one"
            )
        device = self.speech_model.device
        voice_codes = torch.tensor(voice.codes, device=device)[None, None]  # (1, 1, 32)

        @torch.inference_mode()
        def decode(codes: list[int], first: int) -> Tensor:
            return self.bicodec.detokenize(torch.tensor([codes], device=device), voice_codes)[0, 0].cpu()

        return decode

    def _encode_one(self, wave: Tensor) -> list[int]:
        pieces = self._level(wave).split(SECONDS_PER_PIECE * self.sample_rate)
        return [code for piece in pieces for code in self._encode_piece(piece)]

    @torch.inference_mode()
    def _encode_piece(self, wave: Tensor) -> list[int]:
        wave = nn.functional.pad(wave, (0, max(0, MIN_SAMPLES - len(wave))))
        values = self.feature_extractor(wave.numpy(), sampling_rate=self.sample_rate, return_tensors="pt").input_values
        states = self.speech_model(values.to(self.speech_model.device), output_hidden_states=True).hidden_states
        features = torch.stack([states[layer] for layer in SPEECH_LAYERS]).mean(dim=0)  # (1, codes, width)
        return self.bicodec.quantizer.tokenize(self.bicodec.encoder(features.transpose(1, 2)))[0].tolist()

    @torch.inference_mode()
    def _make_voice(self, wave: Tensor) -> SparkTTSVoice:
        """Make a voice from the first seconds of a wave, which is repeated if it is shorter."""
        size = int(self.sample_rate * self.config["ref_segment_duration"])
        size = size // self.samples_per_group * self.samples_per_group
        wave = self._level(wave)
        wave = wave.repeat(size // len(wave) + 1)[:size]
        mel = self.bicodec.mel_transformer(wave[None].to(self.speech_model.device))  # (1, bands, frames)
        return SparkTTSVoice(self.bicodec.speaker_encoder.tokenize(mel.transpose(1, 2)).flatten().tolist())

    def _level(self, wave: Tensor) -> Tensor:
        """Normalise the volume of a wave by the package's rule, if the folder's configuration asks for it."""
        if not self.config["volume_normalize"]:
            return wave
        audio = _require(f"{PACKAGE}.utils.audio")
        return torch.from_numpy(audio.audio_volume_normalize(wave.numpy())).float()

"""GLM-4-Voice: WhisperVQ codes at 12.5 per second, flow-matching decoder to 22,050 Hz.

Encoding follows the public `extract_speech_token` of GLM-4-Voice: first channel, 16 kHz, independent pieces of 30 s,
and one code for every 1280 samples or part of them. Each piece is padded to its own multiple of 1280 samples, not to
the longest piece of the call, so codes do not depend on the other waves in the batch.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from vita_audio.files.checkpoint import read_json
from vita_audio.files.permissions import restore_permissions
from vita_audio.files.tensors import load_model
from vita_audio.resample import RULE as RESAMPLING_RULE
from vita_audio.resample import resample
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.mel import mel_spectrogram
from vita_audio.speech_decoder.streaming import FlowVoice
from vita_audio.stopwatch import Stopwatch

from .base import AudioStream, AudioTokenizer, check_chunk_sizes, fingerprint
from .front_end import RULE as FRONT_END
from .front_end import frame_speech
from .whisper_vq import WhisperVQEncoder

EMBEDDED = "embedded"
_ASSETS = Path(__file__).resolve().parents[1] / "assets"
EMBEDDED_TOKENIZER = _ASSETS / "speech_tokenizer"
EMBEDDED_DECODER = _ASSETS / "speech_decoder"

PIECES_PER_BATCH = 8  # pieces of 30 s; bounds the memory of encoding, whatever the length of the audio
STREAM_CHUNKS = (10, 15, 25, 50)  # codes; a short first chunk starts early, long chunks save work
# The embedded flow starts from zero instead of noise (`inference_temperature`), so six steps come close to ten. Eight
# codes are the first run of audio in "boost", so that the first samples do not wait for more text.
EMBEDDED_STREAM = {"stream_chunks": (8, 12, 25, 50), "stream_steps": (6,)}

# Settings that decide the codes and do not show in the weights.
ENCODER_SETTINGS = (
    "activation_function",
    "encoder_attention_heads",
    "encoder_causal_attention",
    "encoder_causal_convolution",
    "max_source_positions",
    "pooling_kernel_size",
    "pooling_position",
    "pooling_type",
    "quantize_causal_block_size",
    "quantize_causal_encoder",
    "quantize_position",
)
_FEATURE_SETTINGS = ("dither", "hop_length", "n_fft", "n_samples", "sampling_rate")


def piece_features(
    pieces: Sequence[Tensor], extractor: WhisperFeatureExtractor, samples_per_code: int
) -> tuple[Tensor, Tensor]:
    """Return the encoder's input: log-mel (batch, bins, frames) padded to whole codes, and its mask, bool.

    Args:
        pieces: Waves, (samples,) each, at the extractor's rate.
        samples_per_code: Each piece is padded to a multiple of this length.
    """
    settings = {"padding": "longest", "pad_to_multiple_of": samples_per_code, "return_tensors": "pt"}
    rate = extractor.sampling_rate
    mels = [extractor(piece.numpy(), sampling_rate=rate, **settings)["input_features"][0].T for piece in pieces]
    features = pad_sequence(mels, batch_first=True).transpose(1, 2)
    first_samples = torch.arange(features.shape[2]) * extractor.hop_length
    return features, first_samples < torch.tensor([len(piece) for piece in pieces])[:, None]


class GLM4VoiceTokenizer(AudioTokenizer):
    """WhisperVQ encoder and speech decoder, in float32."""

    name = "glm4voice"
    released_as = "THUDM/glm-4-voice-tokenizer"
    voice_class = FlowVoice
    output_rate = SpeechDecoder.sample_rate

    def __init__(
        self,
        encoder: WhisperVQEncoder,
        feature_extractor: WhisperFeatureExtractor,
        decoder: SpeechDecoder | None = None,
        *,
        num_steps: int = 10,
        seed: int = 42,
        stream_chunks: Sequence[int] = STREAM_CHUNKS,
        stream_steps: Sequence[int] | None = None,
        released_noise: bool = False,
    ):
        """Combine encoder, features and decoder.

        Args:
            decoder: None: only `encode` works.
            num_steps: Euler steps of the flow, `option_steps` in the release.
            seed: Seed for the noise of flow and vocoder; the same codes always give the same wave.
            stream_chunks: Codes in the first, second, ... chunk of a stream; the last size repeats.
            stream_steps: Euler steps for the first, second, ... chunk of a stream; the last number repeats. None:
                always `num_steps`. The released web demo uses (1, 3, 5, 7, 9, 10).
            released_noise: `decode` draws its noise as the release does, see `SpeechDecoder.decode`.
        Raises: ValueError if encoder, features and decoder do not belong together.
        """
        config = encoder.config
        if feature_extractor.feature_size != config.num_mel_bins:
            raise ValueError(
                f"preprocessor_config.json must have feature_size {config.num_mel_bins} like the encoder's "
                f"num_mel_bins, got {feature_extractor.feature_size}"
            )
        if decoder is not None and decoder.vocab_size != config.quantize_vocab_size:
            raise ValueError(
                f"the speech decoder must know the tokenizer's {config.quantize_vocab_size} codes, got a decoder of "
                f"{decoder.vocab_size}; take tokenizer and decoder of one release"
            )
        if min((num_steps, *(stream_steps or ()))) < 1:
            raise ValueError(f"num_steps and stream_steps must be at least 1, got {num_steps} and {stream_steps}")
        self.encoder = encoder.eval().requires_grad_(False)
        self.feature_extractor = feature_extractor
        self.decoder = decoder
        self.num_steps, self.seed, self.released_noise = num_steps, seed, released_noise
        self.stream_chunks, self.stream_steps = check_chunk_sizes(stream_chunks), tuple(stream_steps or (num_steps,))
        # Only the embedded tokenizer has one in its preprocessor_config.json; released ones take waves as they are.
        self.speech_level: float | None = getattr(feature_extractor, "speech_level", None)
        self.sample_rate = feature_extractor.sampling_rate
        self.samples_per_code = feature_extractor.hop_length * config.frames_per_code
        self.samples_per_piece = min(
            feature_extractor.n_samples,
            config.max_source_positions // config.pooling_kernel_size * self.samples_per_code,
        )
        self.frame_rate = self.sample_rate / self.samples_per_code
        self.vocab_size = config.quantize_vocab_size

    @classmethod
    def from_pretrained(
        cls, path: str | Path | None = None, decoder_path: str | Path | None = None, **options
    ) -> "GLM4VoiceTokenizer":
        """Load folders like glm-4-voice-tokenizer and glm-4-voice-decoder, or the weights in this package.

        Args:
            path: None or "embedded" for the tokenizer in this package.
            decoder_path: "embedded" for the decoder in this package, which is also the default for its tokenizer.
                Streams of this decoder, and of others for this tokenizer, such as one with a new voice, have the
                settings `EMBEDDED_STREAM` unless the options set any of these or `num_steps`.
            options: More arguments as in `AudioTokenizer.from_pretrained`.
        """
        if EMBEDDED in (path or EMBEDDED, decoder_path) and not options.keys() & {"num_steps", *EMBEDDED_STREAM}:
            options |= EMBEDDED_STREAM
        if path in (None, EMBEDDED):
            path, decoder_path = EMBEDDED_TOKENIZER, decoder_path or EMBEDDED
        if decoder_path == EMBEDDED:
            decoder_path = EMBEDDED_DECODER
        return super().from_pretrained(path, decoder_path, **options)

    @classmethod
    def _load(cls, folder: Path, decoder_folder: Path | None, device: str, **options) -> "GLM4VoiceTokenizer":
        read_json(folder / "preprocessor_config.json")
        encoder, _ = load_model(WhisperVQEncoder, folder, dtype=torch.float32)
        decoder = None if decoder_folder is None else SpeechDecoder.from_pretrained(decoder_folder, device)
        return cls(encoder.to(device), WhisperFeatureExtractor.from_pretrained(folder), decoder, **options)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json`, `model.safetensors` with weights as `dtype`, and `preprocessor_config.json`."""
        weights = {name: value.to(dtype) for name, value in self.encoder.state_dict().items()}
        self.encoder.save_pretrained(folder, state_dict=weights)
        config = deepcopy(self.encoder.config)
        config.dtype = dtype  # that of the encoder is in the file
        config.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)
        restore_permissions(Path(folder))

    @cached_property
    def fingerprint(self) -> str:
        settings = [RESAMPLING_RULE, *(getattr(self.encoder.config, name) for name in ENCODER_SETTINGS)]
        settings += [getattr(self.feature_extractor, name) for name in _FEATURE_SETTINGS]
        settings += [] if self.speech_level is None else [FRONT_END, self.speech_level]
        weights = {name: value for name, value in self.encoder.state_dict().items() if not name.startswith("ema_")}
        return fingerprint(self.name, settings, weights)

    def _stream(self, voice: FlowVoice | None, stopwatch: Stopwatch) -> AudioStream:
        decoder = self._need_decoder()
        state = decoder.start(voice, seed=self.seed)
        state.stopwatch = stopwatch
        steps = chain(self.stream_steps, repeat(self.stream_steps[-1]))

        def decode_chunk(codes: list[int], final: bool) -> Tensor:
            state.num_steps = next(steps)
            return decoder.decode_chunk(state, codes, final)

        return AudioStream(decode_chunk, self.vocab_size, self.stream_chunks)

    def _decode(self, codes: list[int], voice: FlowVoice | None) -> Tensor:
        options = {"num_steps": self.num_steps, "seed": self.seed, "released_noise": self.released_noise}
        return self._need_decoder().decode(codes, voice, **options)

    def _make_voice(self, wave: Tensor) -> FlowVoice:
        mel = mel_spectrogram(resample(wave, self.sample_rate, self.output_rate)[None])[0]
        return FlowVoice(codes=self._encode([wave])[0], mel=mel)

    def _front_end(self, wave: Tensor) -> Tensor:
        return wave if self.speech_level is None else frame_speech(wave, self.sample_rate, self.speech_level)

    def _encode(self, waves: list[Tensor]) -> list[list[int]]:
        pieces = [(number, piece) for number, wave in enumerate(waves) for piece in wave.split(self.samples_per_piece)]
        codes: list[list[int]] = [[] for _ in waves]
        for start in range(0, len(pieces), PIECES_PER_BATCH):
            batch = pieces[start : start + PIECES_PER_BATCH]
            batch_codes = self._encode_pieces([piece for _, piece in batch])
            for (number, _), piece_codes in zip(batch, batch_codes, strict=True):
                codes[number] += piece_codes
        return codes

    @torch.inference_mode()
    def _encode_pieces(self, pieces: list[Tensor]) -> list[list[int]]:
        features, mask = piece_features(pieces, self.feature_extractor, self.samples_per_code)
        output = self.encoder(features.to(self.encoder.device), mask.to(self.encoder.device))
        rows = zip(output.quantized_token_ids, output.token_mask, strict=True)
        return [ids[kept].tolist() for ids, kept in rows]

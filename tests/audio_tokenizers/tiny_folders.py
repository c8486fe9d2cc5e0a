"""Tiny folders of weights, one pair (tokenizer, decoder) for each registered audio tokenizer."""

from pathlib import Path

from transformers import WhisperFeatureExtractor

from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from vita_audio.speech_decoder.config import (
    DecoderConfig,
    EncoderConfig,
    EstimatorConfig,
    FlowConfig,
    HiFTConfig,
)
from vita_audio.speech_decoder.decoder import SpeechDecoder
from vita_audio.speech_decoder.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.hift import HiFTGenerator

ASSETS = Path(__file__).parents[1] / "assets" / "speech_tokenizer"
NUM_CODES = 48


def make_speech_decoder(vocab_size: int) -> SpeechDecoder:
    encoder = EncoderConfig(input_size=16, output_size=16, attention_heads=2, linear_units=16, num_blocks=1)
    estimator = EstimatorConfig(channels=(16, 16), attention_head_dim=8, n_blocks=1, num_mid_blocks=1, num_heads=2)
    flow = FlowConfig(input_size=16, spk_embed_dim=8, vocab_size=vocab_size, encoder=encoder, estimator=estimator)
    hift = HiFTConfig(base_channels=16, f0_channels=8)
    return SpeechDecoder(DecoderConfig(flow, hift), MaskedDiffWithXvec(flow), HiFTGenerator(hift))


def make_glm4voice_folders(folder: Path) -> tuple[Path, Path]:
    config = WhisperVQConfig(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        num_mel_bins=16,
        pooling_position=1,
        quantize_position=1,
        quantize_vocab_size=NUM_CODES,
    )
    encoder = WhisperVQEncoder(config)
    encoder.codebook.weight.data.normal_()
    tokenizer = GLM4VoiceTokenizer(encoder, WhisperFeatureExtractor(feature_size=16))
    tokenizer.save_pretrained(folder / "tokenizer")
    make_speech_decoder(NUM_CODES).save_pretrained(folder / "decoder")
    return folder / "tokenizer", folder / "decoder"


MAKE_FOLDERS = {"glm4voice": make_glm4voice_folders}

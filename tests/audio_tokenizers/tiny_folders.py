"""Tiny folders of weights, one pair (tokenizer, decoder) for each registered audio tokenizer."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, WhisperFeatureExtractor

from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
from vita_audio.audio_tokenizers.sparktts import SparkTTSVoice
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from vita_audio.speech_decoder.config import DecoderConfig, EncoderConfig, EstimatorConfig, FlowConfig, HiFTConfig
from vita_audio.speech_decoder.cosyvoice2.decoder import read_sizes
from vita_audio.speech_decoder.cosyvoice2.flow import CosyVoice2Flow
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.hift import HiFTGenerator

ASSETS = Path(__file__).parents[1] / "assets" / "speech_tokenizer"
LAYOUTS = json.loads((ASSETS.parent / "token_layouts" / "case.json").read_text(encoding="utf-8"))["layouts"]
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


def make_cosyvoice2_folders(folder: Path) -> tuple[Path, Path]:
    """An S3 tokenizer and a decoder like those of CosyVoice2-0.5B, at the smallest sizes that its head size allows."""
    from vita_audio.optional import require

    model_v2 = require("s3tokenizer.model_v2", purpose="tests", install="s3tokenizer", unused=["torchaudio"])
    config = model_v2.ModelConfig(n_mels=80, n_audio_state=64, n_audio_head=1, n_audio_layer=1)
    model = model_v2.S3TokenizerV2("speech_tokenizer_v2_25hz", config)
    save_file(model.state_dict(), folder / "speech_tokenizer_v2.safetensors")
    text = (ASSETS.parent / "cosyvoice2" / "cosyvoice2.yaml").read_text(encoding="utf-8")
    (folder / "cosyvoice2.yaml").write_text(text.replace("vocab_size: 100", "vocab_size: 6561"), encoding="utf-8")
    flow_config, hift_config = read_sizes(folder / "cosyvoice2.yaml")
    save_file(CosyVoice2Flow(flow_config).state_dict(), folder / "flow.safetensors")
    save_file(HiFTGenerator(hift_config).state_dict(), folder / "hift.safetensors")
    return folder, folder


def make_snac24khz_folders(folder: Path) -> tuple[Path, None]:
    from snac import SNAC

    config = {
        "sampling_rate": 24_000,
        "encoder_dim": 2,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 32,
        "decoder_rates": [8, 8, 4, 2],
        "attn_window_size": None,
        "codebook_size": 4096,
        "codebook_dim": 8,
        "vq_strides": [4, 2, 1],
        "noise": True,
        "depthwise": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(SNAC(**config).state_dict(), folder / "pytorch_model.bin")
    return folder, None


def make_sparktts_folders(folder: Path) -> tuple[Path, None]:
    """Like Spark-TTS-0.5B; the widths of its speaker encoder cannot be chosen, so this one is large."""
    from vita_audio.audio_tokenizers.sparktts import make_bicodec

    width, backbone = (
        16,
        {"vocos_dim": 16, "vocos_intermediate_dim": 16, "vocos_num_layers": 2, "sample_ratios": [1, 1]},
    )
    mel = {"sample_rate": 16_000, "n_fft": 1024, "win_length": 640, "hop_length": 320, "mel_fmin": 10, "mel_fmax": None}
    bicodec = {
        "mel_params": mel | {"num_mels": 32},
        "encoder": backbone | {"input_channels": width, "out_channels": width},
        "decoder": {"input_channel": width, "channels": 32, "rates": [8, 5, 4, 2], "kernel_sizes": [16, 11, 8, 4]},
        "quantizer": {"input_dim": width, "codebook_size": 8192, "codebook_dim": 8, "commitment": 0.25},
        "speaker_encoder": {"input_dim": 32, "out_dim": width, "latent_dim": 16, "token_num": 32},
        "prenet": backbone | {"input_channels": width, "out_channels": width, "condition_dim": width},
        "postnet": backbone | {"input_channels": width, "out_channels": width},
    }
    settings = {"sample_rate": 16_000, "volume_normalize": True, "ref_segment_duration": 6, "latent_hop_length": 320}
    speech = Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=17,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    )
    (folder / "BiCodec").mkdir()
    (folder / "BiCodec" / "config.yaml").write_text(yaml.safe_dump({"audio_tokenizer": bicodec}), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    save_file(make_bicodec(bicodec).state_dict(), folder / "BiCodec" / "model.safetensors")
    Wav2Vec2Model(speech).save_pretrained(folder / "wav2vec2-large-xlsr-53")
    Wav2Vec2FeatureExtractor().save_pretrained(folder / "wav2vec2-large-xlsr-53")
    return folder, None


MAKE_FOLDERS = {
    "glm4voice": make_glm4voice_folders,
    "cosyvoice2": make_cosyvoice2_folders,
    "snac24khz": make_snac24khz_folders,
    "sparktts": make_sparktts_folders,
}
PACKAGES = {  # what a type needs beyond this package
    "cosyvoice2": ("s3tokenizer", "onnx"),
    "snac24khz": ("snac",),
    "sparktts": ("spark_tts_lib", "einx", "omegaconf"),
}
OPTIONS = {"sparktts": {"voice": SparkTTSVoice(range(0, 4096, 128))}}  # of `get_audio_tokenizer`
CODES_LOST = {"sparktts": 1}  # at the end, where a window of wav2vec 2.0 is not full

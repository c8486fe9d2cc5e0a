"""Configuration of the speech decoder; field names are those of the released `config.yaml`."""

import math
from dataclasses import dataclass, field

from .mel import HOP_LENGTH, NUM_BANDS, SAMPLE_RATE


@dataclass(frozen=True)
class EncoderConfig:
    """Transformer over codes with relative positions and block-causal attention."""

    input_size: int = 512
    output_size: int = 512
    attention_heads: int = 8
    linear_units: int = 2048
    num_blocks: int = 6
    dropout_rate: float = 0.1
    positional_dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    block_size: int = 10

    def __post_init__(self):
        if self.output_size % self.attention_heads:
            raise ValueError(
                f"encoder output_size must be a multiple of attention_heads, got {self.output_size} and "
                f"{self.attention_heads}"
            )


@dataclass(frozen=True)
class EstimatorConfig:
    """UNet that estimates the flow's velocity; the `in_channels` are noisy mel, prior, speaker and prompt."""

    in_channels: int = 320
    out_channels: int = 80
    channels: tuple[int, ...] = (256, 256)
    dropout: float = 0.0
    attention_head_dim: int = 64
    n_blocks: int = 4
    num_mid_blocks: int = 12
    num_heads: int = 8


@dataclass(frozen=True)
class FlowMatchingConfig:
    """Conditional flow matching: path, time schedule, classifier-free guidance, and the scale of the initial noise.

    `inference_temperature` is not in the released configuration, which samples at 1. A lower temperature gives a more
    likely mel: clearer speech from a small flow, with less variety.
    """

    sigma_min: float = 1e-6
    t_scheduler: str = "cosine"
    training_cfg_rate: float = 0.2
    inference_cfg_rate: float = 0.7
    inference_temperature: float = 1.0

    def __post_init__(self):
        if self.t_scheduler not in ("cosine", "linear"):
            raise ValueError(f"t_scheduler must be cosine or linear, got {self.t_scheduler!r}")
        if not 0 <= self.training_cfg_rate < 1:
            raise ValueError(f"training_cfg_rate must be in [0, 1), got {self.training_cfg_rate}")
        if not 0 <= self.inference_temperature <= 1:
            raise ValueError(f"inference_temperature must be in [0, 1], got {self.inference_temperature}")


@dataclass(frozen=True)
class FlowConfig:
    """Audio codes to mel; the defaults are the released sizes."""

    input_size: int = 512
    output_size: int = 80
    spk_embed_dim: int = 192
    vocab_size: int = 16384
    input_frame_rate: float = 12.5
    sampling_ratios: tuple[int, ...] = (1, 1, 1, 1)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cfm: FlowMatchingConfig = field(default_factory=FlowMatchingConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)

    def __post_init__(self):
        if self.estimator.in_channels != 4 * self.output_size or self.estimator.out_channels != self.output_size:
            raise ValueError(
                f"the estimator must read 4 * output_size and write output_size = {self.output_size} channels, got "
                f"{self.estimator.in_channels} and {self.estimator.out_channels}"
            )
        if self.encoder.input_size != self.input_size:
            raise ValueError(f"encoder input_size must be {self.input_size}, got {self.encoder.input_size}")


@dataclass(frozen=True)
class HiFTConfig:
    """Mel to waveform; the defaults are the released sizes."""

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = SAMPLE_RATE
    nsf_alpha: float = 0.1
    nsf_sigma: float = 0.003
    nsf_voiced_threshold: float = 10
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)
    n_fft: int = 16
    hop_len: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99
    f0_channels: int = 512

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.upsample_rates) * self.hop_len


@dataclass(frozen=True)
class DecoderConfig:
    """Both halves of the speech decoder."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)

    def __post_init__(self):
        mel = (self.hift.sampling_rate, self.hift.samples_per_frame, self.hift.in_channels, self.flow.output_size)
        if mel != (SAMPLE_RATE, HOP_LENGTH, NUM_BANDS, NUM_BANDS):
            raise ValueError(
                f"flow and hift must share a mel of {NUM_BANDS} bands at {SAMPLE_RATE} Hz and {HOP_LENGTH} samples per "
                f"frame, got sampling_rate, samples per frame, in_channels, output_size = {mel}"
            )

"""Speech encoder of GLM-4-Voice: a Whisper encoder with pooling and a codebook, 12.5 codes per second.

Follows "GLM-4-Voice" (arXiv 2412.02612) and the released glm-4-voice-tokenizer, whose folder loads unchanged: field
names of config.json and parameter names are the same. The layers are those of transformers' Whisper; this module adds
only the differences: causal convolutions, block-causal attention, pooling and quantisation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer, WhisperPreTrainedModel, sinusoids

from vita_audio.speech_decoder.layers import CausalConv1d, block_causal_mask

CONV_STRIDE = 2  # mel frames (100 Hz) per encoder position (50 Hz)


class WhisperVQConfig(WhisperConfig):
    """Whisper's configuration with the fields of the released tokenizer.

    With `quantize_encoder_only` the layers end at the codebook. `quantize_causal_block_size` is the size of attention
    blocks in 50 Hz positions: a position attends to all blocks up to its own (None: to everything). Only training reads
    `quantize_restart_interval` and `quantize_commit_coefficient`. `quantize_ema_decay` is for training too, and decides
    whether the encoder has buffers for it. Nothing reads `quantize_loss_scale`, a field of the released tokenizer.
    """

    encoder_causal_attention: bool = False
    encoder_causal_convolution: bool = True
    pooling_kernel_size: int = 4
    pooling_position: int = 16
    pooling_type: str = "avg"
    quantize_vocab_size: int = 16384
    quantize_position: int = 16
    quantize_encoder_only: bool = True
    quantize_causal_encoder: bool = False
    quantize_causal_block_size: int | None = 200
    quantize_ema_decay: float | None = 0.99
    quantize_restart_interval: int | None = 100
    quantize_commit_coefficient: float = 0.25
    quantize_loss_scale: float = 10.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.pooling_type not in ("avg", "max"):
            raise ValueError(f"pooling_type must be 'avg' or 'max', got {self.pooling_type!r}")
        if not 1 <= self.pooling_position <= self.quantize_position <= self.encoder_layers:
            raise ValueError(
                "layers must satisfy 1 <= pooling_position <= quantize_position <= encoder_layers, got "
                f"{self.pooling_position}, {self.quantize_position}, {self.encoder_layers}"
            )

    @property
    def frames_per_code(self) -> int:
        """Mel frames (100 Hz) that one code stands for."""
        return CONV_STRIDE * self.pooling_kernel_size


@dataclass
class WhisperVQOutput(ModelOutput):
    """Codes and hidden states of the encoder.

    Attributes:
        quantized_token_ids: (batch, codes), int64; meaningless at masked positions.
        token_mask: (batch, codes), bool; True where the first mel frame of the code is valid.
        frame_hidden: (batch, 4 * codes, d_model), before pooling, 50 Hz.
        frame_mask: (batch, 4 * codes), bool.
        pre_vq_hidden: (batch, codes, d_model), input of the codebook.
        last_hidden_state: (batch, codes, d_model), quantised, with positions, after any layers behind the codebook.
    """

    quantized_token_ids: Tensor | None = None
    token_mask: Tensor | None = None
    frame_hidden: Tensor | None = None
    frame_mask: Tensor | None = None
    pre_vq_hidden: Tensor | None = None
    last_hidden_state: Tensor | None = None


def nearest_codewords(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest codeword of every vector by squared distance, in float32 even under autocast.

    Args:
        vectors: (..., width).
        codebook: (vocabulary, width).
    Returns: codewords (..., width), float32, and their ids (...), int64.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        codebook = codebook.float()
        # |v - c|^2 without |v|^2, which is the same for all codewords
        with torch.no_grad():
            distance = codebook.pow(2).sum(-1) - 2 * vectors.float() @ codebook.T  # (..., vocabulary)
            ids = distance.argmin(-1)
        return F.embedding(ids, codebook), ids


class WhisperVQEncoder(WhisperPreTrainedModel):
    """Log-mel spectrogram to speech codes.

    The buffers `ema_count` and `ema_weight` are training statistics of the codebook, which `tools.codec` updates. They
    are part of the released weights.
    """

    config_class = WhisperVQConfig
    config: WhisperVQConfig
    _supports_flash_attn = False  # the masks are four-dimensional
    _supports_flex_attn = False
    _no_split_modules = ["WhisperEncoderLayer"]

    def __init__(self, config: WhisperVQConfig):
        super().__init__(config)
        width = config.d_model
        convolution, padding = (CausalConv1d, 0) if config.encoder_causal_convolution else (nn.Conv1d, 1)
        self.conv1 = convolution(config.num_mel_bins, width, kernel_size=3, padding=padding)
        self.conv2 = convolution(width, width, kernel_size=3, stride=CONV_STRIDE, padding=padding)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        num_layers = config.quantize_position if config.quantize_encoder_only else config.encoder_layers
        self.layers = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(num_layers))
        if not config.quantize_encoder_only:
            self.layer_norm = nn.LayerNorm(width)
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // config.pooling_kernel_size, width)
        if config.quantize_ema_decay:
            self.codebook.weight.requires_grad_(False)
            self.register_buffer("ema_count", torch.ones(config.quantize_vocab_size))
            self.register_buffer("ema_weight", torch.zeros(config.quantize_vocab_size, width))
        self.embed_positions.requires_grad_(False)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, WhisperVQEncoder):
            for embedding in (module.embed_positions, module.embed_positions2):
                init.copy_(embedding.weight, sinusoids(*embedding.weight.shape))
            if module.config.quantize_ema_decay:
                init.ones_(module.ema_count)
                init.copy_(module.ema_weight, module.codebook.weight)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> WhisperVQOutput:
        """Encode log-mel features.

        Args:
            input_features: (batch, mel bins, frames) at 100 Hz; frames a multiple of `config.frames_per_code`.
            attention_mask: (batch, frames), non-zero where a frame is valid; padding must be at the end.
        Raises: ValueError for a wrong number of frames.
        """
        frames, stride = input_features.shape[2], self.config.frames_per_code
        longest = self.config.max_source_positions * CONV_STRIDE
        if frames == 0 or frames % stride or frames > longest:
            raise ValueError(
                f"the number of mel frames must be a multiple of {stride}, at most {longest} and not 0, got {frames}; "
                "pad the features or split the audio"
            )
        if attention_mask is None:
            attention_mask = input_features.new_ones(input_features.shape[0], input_features.shape[2])
        valid = attention_mask[:, ::CONV_STRIDE].bool()  # (batch, positions)
        hidden = F.gelu(self.conv1(input_features))
        hidden = F.gelu(self.conv2(hidden)).transpose(1, 2)  # (batch, positions, width)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        hidden = F.dropout(hidden, self.config.dropout, self.training)

        config, output = self.config, WhisperVQOutput()
        kernel, mask = 1, self._attention_mask(valid, 1, 1, hidden.dtype)
        for depth, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, mask)
            if depth == config.pooling_position:
                output.frame_hidden, output.frame_mask = hidden, valid
                hidden = self._pool(hidden)  # (batch, codes, width)
                valid, kernel = valid[:, :: config.pooling_kernel_size], config.pooling_kernel_size
            if depth == config.quantize_position:
                output.pre_vq_hidden, output.token_mask = hidden, valid
                codewords, output.quantized_token_ids = nearest_codewords(hidden, self.codebook.weight)
                hidden = codewords.to(hidden.dtype) + self.embed_positions2.weight[: hidden.shape[1]]
            if depth in (config.pooling_position, config.quantize_position):
                mask = self._attention_mask(valid, depth + 1, kernel, hidden.dtype)
        output.last_hidden_state = hidden if config.quantize_encoder_only else self.layer_norm(hidden)
        return output

    def _attention_mask(self, valid: Tensor, depth: int, kernel: int, dtype: torch.dtype) -> Tensor:
        """Return the additive mask for layer `depth` (from 1), each of whose positions pools `kernel` 50 Hz positions.

        A position sees valid positions up to the end of its own block. The mask is (batch, 1, time, time): 0 or the
        lowest finite value, which gives no NaN in rows without valid positions.
        """
        config, block_size = self.config, self.config.quantize_causal_block_size
        if config.encoder_causal_attention or (config.quantize_causal_encoder and depth <= config.quantize_position):
            valid, size = torch.ones_like(valid), 1  # padding is at the end, where no valid position sees it
        else:
            size = block_size // kernel if block_size else valid.shape[1]
        visible = block_causal_mask(valid.shape[1], size, valid.device) & valid[:, None, None, :]
        mask = torch.zeros(visible.shape, dtype=dtype, device=valid.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)

    def _pool(self, hidden: Tensor) -> Tensor:
        """Pool along time; as in the released tokenizer, padded frames of an incomplete last code are included."""
        pool = F.avg_pool1d if self.config.pooling_type == "avg" else F.max_pool1d
        return pool(hidden.transpose(1, 2), self.config.pooling_kernel_size).transpose(1, 2)

"""The flow of CosyVoice 2 (arXiv 2412.10117): codes at 25 Hz to mel at 50 Hz, causal but for a look-ahead of 3 codes.

Parameter names are those of the released `flow.pt`. Attention covers the whole utterance or, with chunks, earlier
chunks and the current one; a mel frame is then final once the three codes after its chunk are known.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.speech_decoder.config import EncoderConfig, EstimatorConfig, FlowMatchingConfig
from vita_audio.speech_decoder.flow_matching import ConditionalCFM, Flow
from vita_audio.speech_decoder.layers import CausalConv1d, block_causal_mask
from vita_audio.speech_decoder.transformer import EncoderLayer, input_projection, run_layers
from vita_audio.speech_decoder.unet import ConditionalDecoder, ResnetBlock

LOOKAHEAD_CODES = 3
FRAMES_PER_CODE = 2
CODE_RATE = 25.0  # per second
NUM_UP_BLOCKS = 4
NUM_NOISE_FRAMES = 15_000  # the released noise lasts five minutes, then repeats


@dataclass(frozen=True)
class CosyVoice2FlowConfig:
    """Sizes of the flow; the defaults are the released ones. `encoder.block_size` is the number of codes per chunk."""

    vocab_size: int = 6561
    spk_embed_dim: int = 192
    num_bands: int = 80
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(block_size=25))
    cfm: FlowMatchingConfig = field(default_factory=FlowMatchingConfig)
    estimator: EstimatorConfig = field(default_factory=lambda: EstimatorConfig(channels=(256,)))

    def __post_init__(self):
        if len(self.estimator.channels) != 1:
            raise ValueError(f"the estimator must have one scale, got channels {self.estimator.channels}")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (batch, channels, time)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class CausalConvBlock(nn.Module):
    """Causal convolution, normalisation of each frame, Mish. The two identities keep the released names."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        conv, norm = CausalConv1d(in_channels, out_channels, 3), ChannelNorm(out_channels)
        self.block = nn.Sequential(conv, nn.Identity(), norm, nn.Identity(), nn.Mish())

    def forward(self, x: Tensor, mask: None = None) -> Tensor:
        return self.block(x)


class CausalConditionalDecoder(ConditionalDecoder):
    """The UNet with one scale and causal convolutions."""

    def __init__(self, config: EstimatorConfig):
        super().__init__(config)
        (size,) = config.channels
        for block in [module for module in self.modules() if isinstance(module, ResnetBlock)]:
            block.block1 = CausalConvBlock(block.res_conv.in_channels, block.res_conv.out_channels)
            block.block2 = CausalConvBlock(block.res_conv.out_channels, block.res_conv.out_channels)
        self.down_blocks[-1][2] = CausalConv1d(size, size, 3)
        self.up_blocks[-1][2] = CausalConv1d(size, size, 3)
        self.final_block = CausalConvBlock(size, size)

    def forward(self, x: Tensor, visible: Tensor | None, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor) -> Tensor:
        """Return the velocity at `x`, without padding; `visible` None is full attention."""
        return super().forward(x, None, mu, t, spks, cond, visible)


class LookaheadLayer(nn.Module):
    """Mixes each position with the next three, then with the last two."""

    def __init__(self, size: int):
        super().__init__()
        self.conv1 = nn.Conv1d(size, size, LOOKAHEAD_CODES + 1)
        self.conv2 = nn.Conv1d(size, size, 3)

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        """Mix x, (batch, time, size), with itself and the `future` after it, (batch, at most 3, size)."""
        ahead = torch.cat([x, future], dim=1).transpose(1, 2)
        ahead = F.pad(ahead, (0, x.shape[1] + LOOKAHEAD_CODES - ahead.shape[2]))
        hidden = F.leaky_relu(self.conv1(ahead))
        return x + self.conv2(F.pad(hidden, (2, 0))).transpose(1, 2)


class DoublingLayer(nn.Module):
    """Repeats every position, then applies a causal convolution."""

    def __init__(self, size: int):
        super().__init__()
        self.conv = CausalConv1d(size, size, 2 * FRAMES_PER_CODE + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(FRAMES_PER_CODE, dim=1).transpose(1, 2)).transpose(1, 2)


class UpsampleEncoder(nn.Module):
    """Transformer over codes, doubling of the length, and a second transformer over frames."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embed = input_projection(config)
        self.pre_lookahead_layer = LookaheadLayer(config.output_size)
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_blocks))
        self.up_layer = DoublingLayer(config.output_size)
        self.up_embed = input_projection(config)
        self.up_encoders = nn.ModuleList(EncoderLayer(config) for _ in range(NUM_UP_BLOCKS))
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, future: Tensor, *, is_chunked: bool) -> Tensor:
        """Encode (batch, codes, input_size), followed by `future`, to (batch, frames of the codes, output_size)."""
        scale, size = math.sqrt(self.config.output_size), self.config.block_size
        x = self.pre_lookahead_layer(self.embed(x) * scale, self.embed(future) * scale)
        x = run_layers(self.encoders, x, size if is_chunked else x.shape[1])
        x = self.up_embed(self.up_layer(x)) * scale
        return self.after_norm(run_layers(self.up_encoders, x, size * FRAMES_PER_CODE if is_chunked else x.shape[1]))


class CosyVoice2Flow(Flow):
    """Codes to mel, for one utterance or a piece of it."""

    def __init__(self, config: CosyVoice2FlowConfig):
        super().__init__(config.vocab_size, config.encoder.input_size, config.spk_embed_dim, config.num_bands)
        self.config = config
        self.encoder = UpsampleEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.num_bands)
        self.decoder = ConditionalCFM(config.cfm, CausalConditionalDecoder(config.estimator))

    def inference(
        self,
        codes: Tensor,
        noise: Tensor,
        *,
        future: Tensor | None = None,
        prompt_mel: Tensor | None = None,
        embedding: Tensor | None = None,
        num_steps: int = 10,
        is_chunked: bool = False,
    ) -> Tensor:
        """Return the mel of codes, (1, bands, frames after the prompt).

        Args:
            codes: (1, time), including those of a voice prompt.
            noise: Standard normal, (1, bands, 2 * time).
            future: The next three codes, (1, 3); None at the end of the utterance.
            prompt_mel: Mel of the prompt, (1, bands, prompt frames).
            embedding: Speaker embedding, (1, spk_embed_dim); None for the default voice.
            is_chunked: Attend to earlier chunks and the current one, not to the whole utterance.
        """
        future = codes[:, :0] if future is None else future
        encoded = self.encoder(self.input_embedding(codes), self.input_embedding(future), is_chunked=is_chunked)
        mu = self.encoder_proj(encoded).transpose(1, 2)  # (1, bands, frames)
        visible = None
        if is_chunked:
            chunk_size = self.config.encoder.block_size * FRAMES_PER_CODE
            visible = block_causal_mask(mu.shape[2], chunk_size, mu.device)[None]
        return self.sample(noise, mu, prompt_mel=prompt_mel, embedding=embedding, num_steps=num_steps, mask=visible)


def released_noise(num_bands: int) -> Tensor:
    """Return the noise that the release draws once and uses for every utterance, (1, bands, NUM_NOISE_FRAMES)."""
    return torch.randn(1, num_bands, NUM_NOISE_FRAMES, generator=torch.Generator().manual_seed(0))

"""Audio codes to mel spectrogram: encoder, length regulator and conditional flow matching.

Parameter names are those of the released `flow.pt` of GLM-4-Voice (CosyVoice's flow with a block-causal encoder).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.speech_decoder.config import FlowConfig
from vita_audio.speech_decoder.flow_matching import ConditionalCFM
from vita_audio.speech_decoder.masking import MaskedGroupNorm, apply_mask, length_mask, masked_mean, resample_nearest
from vita_audio.speech_decoder.mel import HOP_LENGTH, SAMPLE_RATE
from vita_audio.speech_decoder.transformer import BlockConformerEncoder


class InterpolateRegulator(nn.Module):
    """Stretch a sequence to a number of frames, then smooth it with convolutions."""

    def __init__(self, channels: int, sampling_ratios: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in sampling_ratios:
            layers += [nn.Conv1d(channels, channels, 3, padding=1), MaskedGroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Smooth the stretched sequence (batch, channels, frames); `mask` (batch, 1, frames)."""
        for layer in self.model:
            if isinstance(layer, nn.Conv1d):
                x = layer(apply_mask(x, mask))
            else:
                x = layer(x, mask) if isinstance(layer, MaskedGroupNorm) else layer(x)
        return apply_mask(x, mask)


class MaskedDiffWithXvec(nn.Module):
    """The flow: `loss` for training, `inference` for one utterance, `encode` for the prior alone."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder = BlockConformerEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.length_regulator = InterpolateRegulator(config.output_size, config.sampling_ratios)
        self.decoder = ConditionalCFM(config.cfm, config.estimator)

    def num_frames(self, num_codes: int) -> int:
        """Mel frames that `num_codes` codes last, rounded down."""
        return int(num_codes * SAMPLE_RATE // (self.config.input_frame_rate * HOP_LENGTH))

    def speaker(self, embedding: Tensor | None, batch_size: int = 1) -> Tensor:
        """Speaker embedding (batch, spk_embed_dim), None for the default voice -> (batch, bands)."""
        if embedding is None:
            embedding = self.spk_embed_affine_layer.weight.new_zeros(batch_size, self.config.spk_embed_dim)
        return self.spk_embed_affine_layer(F.normalize(embedding, dim=1))

    def encode(self, codes: Tensor, code_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
        """Codes to the prior mel.

        Args:
            codes: (batch, time), int; negative ids count as 0. code_lengths, frame_lengths: (batch,).
        Returns: (batch, bands, longest frame length), zero where padded.
        """
        code_mask = length_mask(code_lengths, codes.shape[1])
        x = apply_mask(self.input_embedding(codes.clamp(min=0)).transpose(1, 2), code_mask).transpose(1, 2)
        x = self.encoder_proj(self.encoder(x, code_mask))
        num_frames = int(frame_lengths.max())
        x = resample_nearest(x, code_lengths, frame_lengths, num_frames).transpose(1, 2)
        return self.length_regulator(x, length_mask(frame_lengths, num_frames))

    def loss(
        self,
        codes: Tensor,
        code_lengths: Tensor,
        mel: Tensor,
        mel_lengths: Tensor,
        *,
        generator: torch.Generator,
        embedding: Tensor | None = None,
        prompt_probability: float = 0.5,
        max_prompt_fraction: float = 0.3,
    ) -> dict[str, Tensor]:
        """Training losses of a padded batch.

        Args:
            codes: (batch, time); mel: Log-mel, (batch, frames, bands), both padded at the end to any length.
            generator: Draws prompts, flow times, noise and dropped conditions; on any device.
            embedding: Speaker, (batch, spk_embed_dim), or None.
            prompt_probability: How often a row sees a random prefix of its own mel as prompt.
            max_prompt_fraction: Longest such prefix, as a share of the row.
        Returns: `flow_loss`, mean squared velocity error; `prior_loss`, mean |mu - mel|, with gradient, for a trainer
            that wants the prior itself to be a mel. Scalars over valid frames, float32.
        """
        num_frames = int(mel_lengths.max())
        mel = mel[:, :num_frames].transpose(1, 2)
        mask = length_mask(mel_lengths, num_frames)
        mu = self.encode(codes, code_lengths, mel_lengths)
        prompt_lengths = _random_prompts(mel_lengths, prompt_probability, max_prompt_fraction, generator)
        is_prompt = torch.arange(num_frames, device=mel.device) < prompt_lengths[:, None]
        cond = mel * is_prompt[:, None]
        flow_loss = self.decoder.loss(mel, mask, mu, self.speaker(embedding, len(mel)), cond, generator=generator)
        return {"flow_loss": flow_loss, "prior_loss": masked_mean((mu.float() - mel).abs(), mask)}

    def prior_loss(self, codes: Tensor, code_lengths: Tensor, mel: Tensor, mel_lengths: Tensor) -> Tensor:
        """Mean |mu - mel| over valid frames without running the flow; arguments as for `loss`, scalar, float32."""
        mu = self.encode(codes, code_lengths, mel_lengths)
        mel = mel[:, : mu.shape[2]].transpose(1, 2)
        return masked_mean((mu.float() - mel).abs(), length_mask(mel_lengths, mu.shape[2]))

    def inference(
        self,
        codes: Tensor,
        noise: Tensor,
        *,
        num_steps: int = 10,
        prompt_codes: Tensor | None = None,
        prompt_mel: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor:
        """Mel of one utterance.

        Args:
            codes: (1, time).
            noise: Standard normal, (1, bands, frames); says how many frames prompt and codes last together, which is
                `num_frames` of their codes, give or take one for a piece of a longer utterance.
            prompt_codes: (1, prompt time); prompt_mel: (1, bands, prompt frames), what they sounded like.
            embedding: Speaker, (1, spk_embed_dim), or None.
        Returns: (1, bands, frames after the prompt's).
        Raises: ValueError if the noise does not fit the codes or the prompt mel leaves no frame to make.
        """
        if prompt_codes is not None:
            codes = torch.cat([prompt_codes, codes], dim=1)
        num_frames = noise.shape[2]
        if abs(num_frames - self.num_frames(codes.shape[1])) > 1:
            raise ValueError(
                f"{codes.shape[1]} codes need noise for {self.num_frames(codes.shape[1])} frames, got {num_frames}"
            )
        num_prompt_frames = 0 if prompt_mel is None else prompt_mel.shape[2]
        if num_prompt_frames >= num_frames:
            raise ValueError(f"the prompt mel must be shorter than all {num_frames} frames, got {num_prompt_frames}")
        lengths = torch.tensor([codes.shape[1]], device=codes.device)
        mu = self.encode(codes, lengths, torch.tensor([num_frames], device=codes.device))
        cond = torch.zeros_like(mu)
        if num_prompt_frames:
            cond[:, :, :num_prompt_frames] = prompt_mel
        mel = self.decoder.solve(noise, mu, self.speaker(embedding), cond, num_steps=num_steps)
        return mel[:, :, num_prompt_frames:]


def _random_prompts(lengths: Tensor, probability: float, max_fraction: float, generator: torch.Generator) -> Tensor:
    """Prompt length of each row, 0 for rows without one."""
    draws = torch.rand(2, len(lengths), generator=generator, device=generator.device).to(lengths.device)
    return ((draws[0] < probability) * draws[1] * max_fraction * lengths).long()

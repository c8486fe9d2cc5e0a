"""Audio codes to mel spectrogram: encoder, length regulator and conditional flow matching.

Parameter names are those of the released `flow.pt` of GLM-4-Voice (CosyVoice's flow with a block-causal encoder).
"""

import torch
from torch import Tensor, nn

from vita_audio.speech_decoder.config import FlowConfig
from vita_audio.speech_decoder.flow_matching import ConditionalCFM, Flow
from vita_audio.speech_decoder.layers import MaskedGroupNorm, apply_mask, length_mask, masked_mean, resample_nearest
from vita_audio.speech_decoder.mel import HOP_LENGTH, SAMPLE_RATE
from vita_audio.speech_decoder.transformer import BlockConformerEncoder
from vita_audio.speech_decoder.unet import ConditionalDecoder


class InterpolateRegulator(nn.Module):
    """Smooths a sequence that was stretched to a number of frames."""

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


class MaskedDiffWithXvec(Flow):
    """The flow: `loss` for training, `inference` for one utterance, `encode` for the prior alone."""

    def __init__(self, config: FlowConfig):
        super().__init__(config.vocab_size, config.input_size, config.spk_embed_dim, config.output_size)
        self.config = config
        self.encoder = BlockConformerEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.length_regulator = InterpolateRegulator(config.output_size, config.sampling_ratios)
        self.decoder = ConditionalCFM(config.cfm, ConditionalDecoder(config.estimator))

    def num_frames(self, num_codes: int) -> int:
        """Return the number of mel frames of `num_codes` codes, rounded down."""
        return int(num_codes * SAMPLE_RATE // (self.config.input_frame_rate * HOP_LENGTH))

    def encode(self, codes: Tensor, code_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
        """Return the prior mel of codes.

        Args:
            codes: (batch, time), int; negative ids count as 0.
            code_lengths: Number of codes in each row, (batch,).
            frame_lengths: Number of frames in each row, (batch,).
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
        prior: Tensor | None = None,
        embedding: Tensor | None = None,
        prompt_probability: float = 0.5,
        max_prompt_fraction: float = 0.3,
    ) -> dict[str, Tensor]:
        """Return the training losses of a padded batch.

        Args:
            codes: (batch, time), padded at the end to any length.
            code_lengths: Number of codes in each row, (batch,).
            mel: Log-mel, (batch, frames, bands), padded at the end to any length.
            mel_lengths: Number of frames in each row, (batch,).
            generator: Draws prompts, flow times, noise and dropped conditions; on any device.
            prior: What `encode` returns for the codes, if it has been called.
            embedding: Speaker embeddings, (batch, spk_embed_dim), or None.
            prompt_probability: Probability that a row gets a random prefix of its own mel as prompt.
            max_prompt_fraction: Longest such prefix, as a fraction of the row.
        Returns: `flow_loss`, the mean squared velocity error, and `prior_loss`, the mean of |mu - mel|, which a trainer
            may add so that the prior itself becomes a mel. Scalars over valid frames, float32, with gradient.
        """
        num_frames = int(mel_lengths.max())
        mel = mel[:, :num_frames].transpose(1, 2)
        mask = length_mask(mel_lengths, num_frames)
        mu = self.encode(codes, code_lengths, mel_lengths) if prior is None else prior
        prompt_lengths = _random_prompts(mel_lengths, prompt_probability, max_prompt_fraction, generator)
        is_prompt = torch.arange(num_frames, device=mel.device) < prompt_lengths[:, None]
        cond = mel * is_prompt[:, None]
        flow_loss = self.decoder.loss(mel, mask, mu, self.speaker(embedding, len(mel)), cond, generator=generator)
        return {"flow_loss": flow_loss, "prior_loss": masked_mean((mu.float() - mel).abs(), mask)}

    def prior_loss(
        self, codes: Tensor, code_lengths: Tensor, mel: Tensor, mel_lengths: Tensor, *, prior: Tensor | None = None
    ) -> Tensor:
        """Return the mean of |mu - mel| over valid frames, a float32 scalar, without running the flow.

        Arguments as in `loss`.
        """
        mu = self.encode(codes, code_lengths, mel_lengths) if prior is None else prior
        mel = mel[:, : mu.shape[2]].transpose(1, 2)
        return masked_mean((mu.float() - mel).abs(), length_mask(mel_lengths, mu.shape[2]))

    def inference(
        self,
        codes: Tensor,
        noise: Tensor,
        *,
        num_steps: int = 10,
        prompt_mel: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor:
        """Return the mel of one utterance, (1, bands, frames after the prompt).

        Args:
            codes: (1, time), including those of a voice prompt.
            noise: Standard normal, (1, bands, frames): `num_frames` of the codes, give or take one for a piece of a
                longer utterance.
            prompt_mel: Mel of the prompt, (1, bands, prompt frames).
            embedding: Speaker embedding, (1, spk_embed_dim), or None.
        Raises: ValueError if the noise does not fit the codes, or the prompt fills all frames.
        """
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
        return self.sample(noise, mu, prompt_mel=prompt_mel, embedding=embedding, num_steps=num_steps)


def _random_prompts(lengths: Tensor, probability: float, max_fraction: float, generator: torch.Generator) -> Tensor:
    """Draw the prompt length of each row, 0 for rows without a prompt."""
    draws = torch.rand(2, len(lengths), generator=generator, device=generator.device).to(lengths.device)
    return ((draws[0] < probability) * draws[1] * max_fraction * lengths).long()

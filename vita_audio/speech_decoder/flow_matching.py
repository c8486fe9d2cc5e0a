"""Conditional flow matching (Lipman et al. 2023): training loss and ODE solver."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FlowMatchingConfig
from .layers import masked_mean


class ConditionalCFM(nn.Module):
    """Straight paths from noise to mel, with classifier-free guidance over prior, speaker and prompt."""

    def __init__(self, config: FlowMatchingConfig, estimator: nn.Module):
        super().__init__()
        self.config, self.estimator = config, estimator

    def schedule(self, t: Tensor) -> Tensor:
        """Warp uniform times in [0, 1]; the cosine schedule moves more of them towards the noise."""
        return 1 - torch.cos(t * (math.pi / 2)) if self.config.t_scheduler == "cosine" else t

    def solve(
        self, noise: Tensor, mu: Tensor, spks: Tensor, cond: Tensor, *, num_steps: int, mask: Tensor | None = None
    ) -> Tensor:
        """Follow the flow from noise to mel in Euler steps.

        Args:
            noise: Standard normal, (batch, bands, frames); scaled by the configured temperature.
            mu: Prior mel, like `noise`.
            spks: Speakers, (batch, bands).
            cond: Prompt mel, like `noise`.
            num_steps: Euler steps, each one call of the estimator on conditioned and unconditioned input together.
        Returns: Mel, like `noise`.
        Raises: ValueError if num_steps is less than 1.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        times = self.schedule(torch.linspace(0, 1, num_steps + 1, device=noise.device))
        x = self.config.inference_temperature * noise
        for start, end in zip(times[:-1], times[1:], strict=True):
            x = x + (end - start) * self._guided_velocity(x, mask, start, mu, spks, cond)
        return x

    def _guided_velocity(
        self, x: Tensor, mask: Tensor | None, time: Tensor, mu: Tensor, spks: Tensor, cond: Tensor
    ) -> Tensor:
        rate = self.config.inference_cfg_rate
        if rate == 0:
            return self.estimator(x, mask, mu, time.expand(len(x)), spks, cond)
        twice = [torch.cat([value, torch.zeros_like(value)]) for value in (mu, spks, cond)]
        velocity = self.estimator(torch.cat([x, x]), mask, twice[0], time.expand(2 * len(x)), *twice[1:])
        conditioned, unconditioned = velocity.chunk(2)
        return (1 + rate) * conditioned - rate * unconditioned

    def loss(
        self, mel: Tensor, mask: Tensor | None, mu: Tensor, spks: Tensor, cond: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared error of the velocity at a random time of each row's path, over valid frames.

        Args:
            mel: Target, (batch, bands, frames).
            mask: (batch, 1, frames) bool, true where valid; None when nothing is padded.
            mu: Prior mel, like `mel`.
            spks: Speakers, (batch, bands).
            cond: Prompt mel, like `mel`.
            generator: Draws times, noise, and the rows that lose all conditions (`training_cfg_rate`).
        Returns: Scalar, float32.
        """
        device = generator.device
        t = self.schedule(torch.rand(len(mel), generator=generator, device=device)).to(mel.device)
        noise = torch.randn(mel.shape, generator=generator, device=device).to(mel.device)
        keep = torch.rand(len(mel), generator=generator, device=device) >= self.config.training_cfg_rate
        keep = keep.to(mel.device, mel.dtype)
        shrink = 1 - self.config.sigma_min
        point = (1 - shrink * t[:, None, None]) * noise + t[:, None, None] * mel
        velocity = self.estimator(
            point, mask, mu * keep[:, None, None], t, spks * keep[:, None], cond * keep[:, None, None]
        )
        return masked_mean((velocity.float() - (mel - shrink * noise)).square(), mask)


class Flow(nn.Module):
    """Base of the flows from codes to mel, which have an encoder for the prior."""

    def __init__(self, vocab_size: int, input_size: int, speaker_size: int, num_bands: int):
        super().__init__()
        self.input_embedding = nn.Embedding(vocab_size, input_size)
        self.spk_embed_affine_layer = nn.Linear(speaker_size, num_bands)

    def speaker(self, embedding: Tensor | None, batch_size: int = 1) -> Tensor:
        """Project a speaker embedding (batch, spk_embed_dim), None for the default voice, to (batch, bands)."""
        affine = self.spk_embed_affine_layer
        if embedding is None:
            embedding = affine.weight.new_zeros(batch_size, affine.in_features)
        return affine(F.normalize(embedding, dim=1))

    def sample(
        self,
        noise: Tensor,
        mu: Tensor,
        *,
        prompt_mel: Tensor | None,
        embedding: Tensor | None,
        num_steps: int,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Follow the flow from noise to the mel after the prompt, (1, bands, frames after the prompt)."""
        cond, num_prompt_frames = torch.zeros_like(mu), 0
        if prompt_mel is not None:
            num_prompt_frames = prompt_mel.shape[2]
            cond[:, :, :num_prompt_frames] = prompt_mel
        mel = self.decoder.solve(noise, mu, self.speaker(embedding), cond, num_steps=num_steps, mask=mask)
        return mel[:, :, num_prompt_frames:]

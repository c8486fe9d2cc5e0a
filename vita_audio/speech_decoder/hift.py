"""Mel spectrogram to waveform: a neural source-filter vocoder that ends in an inverse STFT.

HiFT = harmonic-plus-noise source (NSF, Wang et al. 2019) shaped by a HiFi-GAN upsampling network (Kong et al. 2020)
that predicts a short-time spectrum (iSTFTNet, Kaneko et al. 2022; HiFTNet, Li et al. 2023). Parameter names are those
of the released `hift.pt` of GLM-4-Voice and CosyVoice, including weight norm stored as `weight_g` and `weight_v`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import HiFTConfig

STEADY_RATE = 22050  # Hz; released vocoders of this rate hold the fundamental for a whole frame


@dataclass(frozen=True)
class SourceNoise:
    """Random part of the harmonic source.

    Attributes:
        phase: Start phase of each harmonic in radians, (batch, harmonics, 1); the fundamental's is zero.
        noise: Standard normal noise added to each harmonic, (batch, harmonics, samples).
    """

    phase: Tensor
    noise: Tensor


class _WeightNorm(nn.Module):
    """Weight = g * v / |v|, the norm taken over all dimensions but the first; computed in each call until `fold`."""

    folded: Tensor | None

    def __init__(self, shape: tuple[int, int, int], num_outputs: int):
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(num_outputs))
        bound = 1 / math.sqrt(shape[1] * shape[2])
        nn.init.uniform_(self.weight_v, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(1, 2), keepdim=True))
        self.register_buffer("folded", None, persistent=False)

    def fold(self) -> None:
        """Compute the weight once; later changes of g and v have no effect."""
        self.folded = self.weight().detach()

    def weight(self) -> Tensor:
        if self.folded is not None:
            return self.folded
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))


class WeightNormConv1d(_WeightNorm):
    """Weight-normed convolution that keeps the length (odd kernel, zero padding)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        super().__init__((out_channels, in_channels, kernel_size), out_channels)
        self.dilation = dilation
        self.padding = dilation * (kernel_size - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight(), self.bias, padding=self.padding, dilation=self.dilation)


class WeightNormConvTranspose1d(_WeightNorm):
    """Weight-normed transposed convolution that multiplies the length by `stride`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__((in_channels, out_channels, kernel_size), out_channels)
        self.stride = stride
        self.padding = (kernel_size - stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x, self.weight(), self.bias, stride=self.stride, padding=self.padding)


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha with one alpha per channel (Ziyin et al. 2020)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


class ResBlock(nn.Module):
    """Residual pairs of a dilated and a plain convolution, each after a Snake activation."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(WeightNormConv1d(channels, channels, kernel_size, d) for d in dilations)
        self.convs2 = nn.ModuleList(WeightNormConv1d(channels, channels, kernel_size) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for activation1, conv1, activation2, conv2 in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            x = x + conv2(activation2(conv1(activation1(x))))
        return x


def _block_reach(kernel_size: int, dilations: tuple[int, ...]) -> int:
    """Return the number of positions on either side that an output of a `ResBlock` depends on."""
    return (kernel_size - 1) // 2 * sum(dilation + 1 for dilation in dilations)


class F0Predictor(nn.Module):
    """Predicts the fundamental frequency: (batch, bands, frames) -> (batch, frames) in Hz, never negative."""

    def __init__(self, in_channels: int, cond_channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(5):
            layers += [WeightNormConv1d(in_channels if index == 0 else cond_channels, cond_channels, 3), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(cond_channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class HarmonicSource(nn.Module):
    """Sines at the fundamental and its harmonics where voiced, noise elsewhere, merged into one channel.

    As in the released vocoders, the fundamental is constant within a frame at 22,050 Hz. At other rates it glides from
    the middle of a frame to the middle of the next, and the harmonics have no start phases of their own.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        self.glides = config.sampling_rate != STEADY_RATE
        self.l_linear = nn.Linear(config.nb_harmonics + 1, 1)

    def forward(self, f0: Tensor, noise: SourceNoise, start_cycles: Tensor | None = None) -> Tensor:
        """Make the excitation signal; no gradient reaches `f0`.

        Args:
            f0: Hz per frame, (batch, frames).
            start_cycles: Cycles of the fundamental before the first frame, (batch,), float64; None at the beginning.
        Returns: (batch, 1, samples), in (-1, 1).
        """
        config = self.config
        with torch.no_grad():
            cycles = self._cycles(f0, start_cycles)
            orders = torch.arange(1, config.nb_harmonics + 2, device=f0.device)
            angles = 2 * math.pi * (cycles[:, None] * orders[:, None] % 1).float()
            if not self.glides:
                angles = angles + noise.phase
            is_voiced = f0.repeat_interleave(config.samples_per_frame, dim=1) > config.nsf_voiced_threshold
            voiced = is_voiced.to(f0.dtype)[:, None]
            noise_scale = voiced * config.nsf_sigma + (1 - voiced) * config.nsf_alpha / 3
            # (batch, harmonics, samples)
            harmonics = config.nsf_alpha * angles.sin() * voiced + noise_scale * noise.noise
        return torch.tanh(self.l_linear(harmonics.transpose(1, 2))).transpose(1, 2)

    def _cycles(self, f0: Tensor, start_cycles: Tensor | None) -> Tensor:
        """Return the cycles of the fundamental up to each sample, (batch, samples), float64.

        In float32 the harmonics, at 1e5 cycles after a minute, would be off by a hundredth of a cycle.
        """
        size, rate = self.config.samples_per_frame, self.config.sampling_rate
        start = 0 if start_cycles is None else start_cycles[:, None]
        if not self.glides:
            return torch.cumsum(f0.double().repeat_interleave(size, dim=1) / rate, dim=1) + start
        middle = torch.cumsum(f0.double() * size / rate, dim=1) + start  # at the middle of each frame
        first = middle[:, :1] if start_cycles is None else start_cycles[:, None]
        before, after = torch.cat([first, middle[:, :-1]], dim=1), torch.cat([middle[:, 1:], middle[:, -1:]], dim=1)
        offset = (torch.arange(size, device=f0.device, dtype=torch.float64) + 0.5) / size - 0.5  # frames
        slope = torch.where(offset < 0, (middle - before)[..., None], (after - middle)[..., None])
        return (middle[..., None] + offset * slope).flatten(1)


class HiFTGenerator(nn.Module):
    """The vocoder: `forward` for training; `predict_f0`, `make_source` and `synthesize` are its steps."""

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        num_bins = config.n_fft + 2  # real and imaginary parts
        channels = [config.base_channels // 2**stage for stage in range(len(config.upsample_rates) + 1)]
        self.m_source = HarmonicSource(config)
        self.conv_pre = WeightNormConv1d(config.in_channels, channels[0], 7)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, kernel_size) in enumerate(
            zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        ):
            width = channels[stage + 1]
            self.ups.append(WeightNormConvTranspose1d(channels[stage], width, kernel_size, rate))
            step = math.prod(config.upsample_rates[stage + 1 :])  # the source spectrum has the rate of the last stage
            down = nn.Conv1d(num_bins, width, 1) if step == 1 else nn.Conv1d(num_bins, width, 2 * step, step, step // 2)
            self.source_downs.append(down)
            self.source_resblocks.append(
                ResBlock(
                    width, config.source_resblock_kernel_sizes[stage], config.source_resblock_dilation_sizes[stage]
                )
            )
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(ResBlock(width, size, dilations))
        self.conv_post = WeightNormConv1d(channels[-1], num_bins, 7)
        self.f0_predictor = F0Predictor(config.in_channels, config.f0_channels)

    def forward(
        self, mel: Tensor, *, generator: torch.Generator | None = None, source_f0: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the wave of a mel and the predicted fundamental.

        Args:
            mel: Log-mel, (batch, bands, frames).
            generator: Generator for the source's noise, on any device; None for a new generator with a random seed.
            source_f0: Hz per frame, (batch, frames), used for the source instead of the prediction (training).
        Returns: Wave (batch, frames * samples_per_frame) in [-audio_limit, audio_limit]; f0 (batch, frames) in Hz.
        """
        f0 = self.predict_f0(mel)
        noise = self.draw_noise(mel.shape[0], mel.shape[2], generator=generator, device=mel.device)
        source = self.make_source(f0 if source_f0 is None else source_f0, noise)
        return self.synthesize(mel, source), f0

    def fold_weight_norm(self) -> None:
        """Compute all weights once, which makes inference faster; training would have no effect any more."""
        for module in self.modules():
            if isinstance(module, _WeightNorm):
                module.fold()

    @property
    def receptive_frames(self) -> int:
        """Upper bound of the number of mel frames on either side that influence a sample, given the excitation."""
        config = self.config
        reach, rate = 3.0, 1  # conv_pre
        for stage, upsample_rate in enumerate(config.upsample_rates):
            reach += 1 / rate
            rate *= upsample_rate
            blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            reach += max(_block_reach(size, dilations) for size, dilations in blocks) / rate
            source_size = config.source_resblock_kernel_sizes[stage]
            reach += _block_reach(source_size, config.source_resblock_dilation_sizes[stage]) / rate + 1 / rate
        return math.ceil(reach + (3 + config.n_fft / config.hop_len) / rate)

    def predict_f0(self, mel: Tensor) -> Tensor:
        """Return the fundamental in Hz, (batch, frames), float32, of a log-mel (batch, bands, frames)."""
        return self.f0_predictor(mel).float()

    def draw_noise(
        self,
        batch_size: int,
        num_frames: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> SourceNoise:
        """Draw the source's start phases and noise on the device of the generator, then move them to `device`."""
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        shape = (batch_size, self.config.nb_harmonics + 1, num_frames * self.config.samples_per_frame)
        phase = (torch.rand((*shape[:2], 1), generator=generator, device=generator.device) * 2 - 1) * math.pi
        phase[:, 0] = 0
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return SourceNoise(phase.to(device), noise.to(device))

    def make_source(self, f0: Tensor, noise: SourceNoise, start_cycles: Tensor | None = None) -> Tensor:
        """Return the excitation (batch, 1, samples) for f0 (batch, frames), in float32 even under autocast."""
        with torch.autocast(f0.device.type, enabled=False):
            return self.m_source(f0.detach().float(), noise, start_cycles)

    def synthesize(self, mel: Tensor, source: Tensor) -> Tensor:
        """Filter the excitation (batch, 1, samples) by a mel (batch, bands, frames) to a wave (batch, samples)."""
        config = self.config
        source_spectrum = self._stft(source.squeeze(1))  # (batch, n_fft + 2, samples / hop + 1)
        x = self.conv_pre(mel)
        blocks_per_stage = len(config.resblock_kernel_sizes)
        for stage, (up, down, source_block) in enumerate(
            zip(self.ups, self.source_downs, self.source_resblocks, strict=True)
        ):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + source_block(down(source_spectrum))
            blocks = self.resblocks[stage * blocks_per_stage : (stage + 1) * blocks_per_stage]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        magnitude, phase = self.conv_post(F.leaky_relu(x)).float().chunk(2, dim=1)
        return self._istft(magnitude, phase).clamp(-config.audio_limit, config.audio_limit)

    def _stft(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.stft(wave.float(), **self._stft_settings(wave.device), return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def _istft(self, log_magnitude: Tensor, phase: Tensor) -> Tensor:
        with torch.autocast(phase.device.type, enabled=False):
            magnitude = log_magnitude.exp().clamp(max=100.0)
            # As in the released network, a sine limits the predicted angles to one radian.
            return torch.istft(torch.polar(magnitude, torch.sin(phase)), **self._stft_settings(phase.device))

    def _stft_settings(self, device: torch.device) -> dict[str, Any]:
        window = torch.hann_window(self.config.n_fft, device=device)
        return {"n_fft": self.config.n_fft, "hop_length": self.config.hop_len, "window": window}

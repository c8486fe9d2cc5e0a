"""Training of a codebook: k-means initialisation, exponential moving averages, restart of dead codes.

The moving averages follow "Neural Discrete Representation Learning" (arXiv 1711.00937), appendix A.1. This module holds
the statistics; the codebook belongs to the encoder being trained, so the encoder's weights are always complete.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder, nearest_codewords

SMALLEST_CLUSTER = 1e-5
VECTORS_AT_A_TIME = 16384  # in k-means, whose table of distances has a column per code


@dataclass
class QuantizerOutput:
    """One quantised batch.

    Attributes:
        quantized: (..., width), float32; its gradient is passed to the input unchanged (straight-through).
        ids: (...), int64; None before the codebook is initialised.
        commitment_loss: Scalar over the valid vectors, already multiplied by the commitment coefficient.
    """

    quantized: Tensor
    ids: Tensor | None
    commitment_loss: Tensor


def kmeans(vectors: Tensor, num_clusters: int, num_iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Find clusters by Lloyd's algorithm; an empty cluster moves to a random vector.

    Args:
        vectors: (count, width), floating point; at least `num_clusters`.
    Returns: Centres, (num_clusters, width), and sizes, (num_clusters,), both of the type of `vectors`.
    """
    centres = vectors[torch.randperm(len(vectors), device=vectors.device)[:num_clusters]]
    sizes = vectors.new_ones(num_clusters)
    for _ in range(num_iterations):
        ids = [nearest_codewords(part, centres)[1] for part in vectors.split(VECTORS_AT_A_TIME)]
        sizes, sums = cluster_statistics(vectors, torch.cat(ids), num_clusters)
        random_rows = torch.randint(len(vectors), (num_clusters,), device=vectors.device)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], vectors[random_rows])
    return centres, sizes


def cluster_statistics(vectors: Tensor, ids: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Return count, (num_clusters,), and sum, (num_clusters, width), of the vectors with each id."""
    sizes = torch.bincount(ids, minlength=num_clusters).to(vectors.dtype)
    sums = vectors.new_zeros(num_clusters, vectors.shape[1]).index_add_(0, ids, vectors)
    return sizes, sums


class VectorQuantizer(nn.Module):
    """Quantises with a codebook and, in training mode, moves the codebook towards its inputs.

    Before `initialize` is called, vectors pass unchanged, so that the encoder can settle before its codes are chosen.
    Works in one process only, and in float32 even under autocast.
    """

    def __init__(self, codebook: nn.Embedding, config: WhisperVQConfig):
        """Train `codebook`, which is updated in place without gradients, with the quantize_* settings of `config`."""
        super().__init__()
        self.codebook = codebook.requires_grad_(False)
        self.config = config
        weight = codebook.weight
        self.register_buffer("cluster_sizes", weight.new_ones(len(weight), dtype=torch.float32))
        self.register_buffer("cluster_sums", weight.detach().float().clone())
        self.register_buffer("recent_uses", torch.zeros(len(weight), dtype=torch.int64, device=weight.device))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64, device=weight.device))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool, device=weight.device))

    def export_statistics(self, encoder: WhisperVQEncoder) -> None:
        """Copy the statistics to the encoder's buffers, which are saved with its weights."""
        encoder.ema_count.copy_(self.cluster_sizes)
        encoder.ema_weight.copy_(self.cluster_sums)

    def perplexity(self) -> float:
        """Return the effective number of codes: the exponential of the entropy of the averaged cluster sizes."""
        share = self.cluster_sizes / self.cluster_sizes.sum()
        return math.exp(-(share * share.clamp_min(torch.finfo(share.dtype).tiny).log()).sum().item())

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Choose the codewords by k-means from valid vectors, (count, width), ideally ten or more per code.

        Raises: ValueError if there are fewer vectors than codes, or a vector is not finite.
        """
        num_codes, count = len(self.cluster_sizes), len(vectors)
        vectors = vectors.float()
        if count < num_codes:
            raise ValueError(f"k-means needs at least {num_codes} vectors, got {count}; collect more batches")
        if num_wrong := int((~vectors.isfinite()).any(dim=1).sum()):
            raise ValueError(f"k-means needs finite vectors, {num_wrong} of {count} are not; lower the learning rate")
        centres, sizes = kmeans(vectors, num_codes)
        sizes = (sizes * num_codes / count).clamp_min(SMALLEST_CLUSTER)  # mean 1
        self.codebook.weight.copy_(centres)
        self.cluster_sizes.copy_(sizes)
        self.cluster_sums.copy_(centres * sizes[:, None])
        self.initialized.fill_(True)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantise (..., width) and, in training mode, update the codebook; `mask`, (...), is False for padding."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            if not self.initialized:
                return QuantizerOutput(hidden, None, hidden.new_zeros(()))
            codewords, ids = nearest_codewords(hidden.detach(), self.codebook.weight)
            if mask is None:
                mask = torch.ones_like(ids, dtype=torch.bool)
            error = (hidden - codewords).pow(2).mean(-1)  # (...)
            num_valid = mask.sum().clamp_min(1)
            commitment = self.config.quantize_commit_coefficient * error.masked_fill(~mask, 0).sum() / num_valid
            quantized = hidden + (codewords - hidden).detach()
            if self.training:
                self._update(hidden.detach()[mask], ids[mask])
            return QuantizerOutput(quantized, ids, commitment)

    @torch.no_grad()
    def _update(self, vectors: Tensor, ids: Tensor) -> None:
        sizes, sums = cluster_statistics(vectors, ids, len(self.cluster_sizes))
        self.cluster_sizes.lerp_(sizes, 1 - self.config.quantize_ema_decay)
        self.cluster_sums.lerp_(sums, 1 - self.config.quantize_ema_decay)
        self.recent_uses += sizes.long()
        self.num_updates += 1
        interval = self.config.quantize_restart_interval
        if interval and self.num_updates % interval == 0:
            self._restart_dead_codes(vectors)
        sizes = self.cluster_sizes[:, None]
        means = self.cluster_sums / sizes.clamp_min(SMALLEST_CLUSTER)
        self.codebook.weight.copy_(torch.where(sizes > SMALLEST_CLUSTER, means, self.codebook.weight))

    def _restart_dead_codes(self, vectors: Tensor) -> None:
        """Move the codes unused since the last restart to different vectors of this batch, as many as it has."""
        dead = (self.recent_uses == 0).nonzero().squeeze(1)[: len(vectors)]
        chosen = vectors[torch.randperm(len(vectors), device=vectors.device)[: len(dead)]]
        size = self.cluster_sizes.mean()
        self.cluster_sizes[dead] = size
        self.cluster_sums[dead] = chosen * size
        self.recent_uses.zero_()

"""Contrastive loss between the audio and text embeddings of the same document."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07  # as in CLIP (arXiv 2103.00020)


def alignment_loss(embeds: Tensor, input_ids: Tensor, position_ids: Tensor | None, code_ids: range) -> Tensor:
    """Pull the mean audio embedding of a document towards its mean text embedding, and away from the others'.

    The loss is that of CLIP: cross entropy over cosine similarities, in both directions, over the documents of the
    batch that have both audio and text. It is 0 for fewer than two such documents.

    Args:
        embeds: Token embeddings, (batch, time, hidden).
        input_ids: (batch, time).
        position_ids: (batch or 1, time), restarts at 0 where a document begins; None for one document in a row.
        code_ids: Ids of the audio codes; all others are text.
    Returns: A scalar, float32.
    """
    is_audio = (input_ids >= code_ids.start) & (input_ids < code_ids.stop)
    starts = torch.zeros_like(input_ids)
    if position_ids is not None:
        starts = starts + (position_ids == 0)
    starts[:, 0] = 1
    document = starts.flatten().cumsum(dim=0) - 1
    group = 2 * document + is_audio.flatten()  # text and audio of each document
    num_groups = 2 * int(document[-1] + 1)
    counts = torch.zeros(num_groups, device=embeds.device).index_add(0, group, torch.ones_like(group).float())
    sums = embeds.new_zeros(num_groups, embeds.shape[-1], dtype=torch.float32)
    means = sums.index_add(0, group, embeds.flatten(0, 1).float()) / counts.clamp(min=1)[:, None]
    has_both = (counts.view(-1, 2) > 0).all(dim=1)
    text, audio = F.normalize(means, dim=-1).view(-1, 2, means.shape[-1])[has_both].unbind(dim=1)
    if len(text) < 2:
        return 0 * embeds.float().sum()
    similarities = text @ audio.T / TEMPERATURE
    pairs = torch.arange(len(text), device=embeds.device)
    return (F.cross_entropy(similarities, pairs) + F.cross_entropy(similarities.T, pairs)) / 2

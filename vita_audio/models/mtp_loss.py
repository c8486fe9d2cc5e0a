"""Training loss of the backbone and its multi-token-prediction modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models.packed_rows import shift_within_documents

LOSS_CHUNK_VOCABULARY = 16384  # the loss holds at most (targets x this many) logits at once


@dataclass
class MTPOutput(CausalLMOutputWithPast):
    """Output of `Qwen2MTPForCausalLM`; the fields besides `loss` and `logits` are detached and for logging.

    Attributes:
        main_loss: Cross entropy of the backbone, scalar; part of `loss` only if the head trains.
        mtp_losses: Cross entropy of depth 1, 2 and so on, (modules,).
        mtp_kl: Divergence of these depths from the backbone, see `mtp_losses`, (modules,); None if its weight is 0.
        accuracies: Share of targets that are the most likely token, from depth 0, (1 + modules,).
        num_targets: Number of targets, from depth 0, (1 + modules,), int64.
    """

    main_loss: Tensor | None = None
    mtp_losses: Tensor | None = None
    mtp_kl: Tensor | None = None
    accuracies: Tensor | None = None
    num_targets: Tensor | None = None


@dataclass(frozen=True)
class DepthScore:
    """Sums over the targets of one depth, all scalars.

    Attributes:
        loss: Weighted cross entropy, float32.
        divergence: Weighted divergence from the teacher, float32; 0 without one.
        num_correct: Targets that are the most likely token.
        num_targets: All targets.
        total_weight: Sum of the targets' weights, float32.
    """

    loss: Tensor
    divergence: Tensor
    num_correct: Tensor
    num_targets: Tensor
    total_weight: Tensor

    def averaged(self, num_items_in_batch: Tensor | int | None = None) -> DepthScore:
        """Divide loss and divergence by `num_items_in_batch`, by default the total weight; by 1 where that is 0."""
        divisor = self.total_weight if num_items_in_batch is None else num_items_in_batch
        divisor = torch.as_tensor(divisor, device=self.loss.device)
        divisor = torch.where(divisor > 0, divisor, 1)
        return replace(self, loss=self.loss / divisor, divergence=self.divergence / divisor)


def score_targets(
    head: nn.Linear,
    hidden_states: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    teacher_states: Tensor | None = None,
) -> DepthScore:
    """Sum the cross entropy of all targets, without ever holding the logits of all of them.

    A large vocabulary is scored in chunks of rows whose logits are computed again in the backward pass. The number of
    chunks depends only on the vocabulary, so that all ranks call the head equally often (ZeRO-3 needs that).

    Args:
        head: Linear layer from hidden size to vocabulary.
        hidden_states: (batch, time, hidden).
        targets: Token to predict at each place or IGNORE_INDEX, (batch, time).
        weights: Factor of each target's cross entropy, (batch, time); None means 1.
        teacher_states: Hidden states that predict the same targets better, (batch, time, hidden); None: no teacher.
    """
    place = targets != IGNORE_INDEX
    targets = targets[place]  # (targets,)
    weights = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights[place].float()
    num_chunks = -(-head.out_features // LOSS_CHUNK_VOCABULARY)
    loss = hidden_states.new_zeros((), dtype=torch.float32)
    divergence, num_correct = loss, targets.new_zeros(())
    parts = [hidden_states[place], targets, weights]
    if teacher_states is not None:
        parts.append(teacher_states[place])
    for chunk in zip(*(part.tensor_split(num_chunks) for part in parts), strict=True):
        if num_chunks > 1:
            scores = checkpoint(_score_rows, head, *chunk, use_reentrant=False, preserve_rng_state=False)
        else:
            scores = _score_rows(head, *chunk)
        loss, num_correct, divergence = loss + scores[0], num_correct + scores[1], divergence + scores[2]
    return DepthScore(loss, divergence, num_correct, place.sum(), weights.sum())


def _score_rows(
    head: nn.Linear, hidden_states: Tensor, targets: Tensor, weights: Tensor, teacher_states: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    logits = head(hidden_states).float()  # (rows, vocabulary)
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    divergence = torch.zeros_like(loss)
    if teacher_states is not None:
        with torch.no_grad():
            taught = head(teacher_states).float().log_softmax(dim=-1)  # (rows, vocabulary)
        divergences = F.kl_div(logits.log_softmax(dim=-1), taught, reduction="none", log_target=True).sum(dim=-1)
        divergence = (divergences * weights).sum()
    return loss, (logits.detach().argmax(dim=-1) == targets).sum(), divergence


def mtp_losses(
    head: nn.Linear,
    hidden_states: Iterable[Tensor],
    labels: Tensor,
    position_ids: Tensor,
    *,
    mtp_weight: float = 1.0,
    kl_weight: float = 0.0,
    loss_weights: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> dict[str, Tensor]:
    """Score every depth, one at a time, and add up the training loss.

    The training loss is the loss of depth 0 (if the head trains) plus `mtp_weight` times the mean loss of the other
    depths. A depth without targets, in short documents or where all labels are masked, has loss 0.

    With `kl_weight`, MTP modules also learn from the backbone's predictions: `kl_weight` times the mean divergence of
    their depths is added. The divergence of depth k is the mean over its targets of
    KL(p || q) = sum over tokens t of p(t) log(p(t) / q(t)), where q at place i of depth k and p at place i + k of the
    backbone predict the same token, i + k + 1. Both are softmaxes at temperature 1 over the whole vocabulary; p carries
    no gradients. Targets, their weights and the divisor are the same as for the cross entropy.

    Args:
        head: The shared output layer.
        hidden_states: Final-normed output of depth 0, 1 and so on, (batch, time, hidden) each.
        labels: (batch, time); depth d predicts the label d + 1 tokens to the right.
        loss_weights: Factor of each label in the loss of every depth, (batch, time).
        num_items_in_batch: Divisor of every sum; None means the number of targets (the sum of their weights) of each
            depth. Where it is 0, the sums are 0 too, and so are the losses.
    Returns: `loss` and the logging fields of `MTPOutput`.
    """
    scores, backbone_states = [], None
    for depth, depth_states in enumerate(hidden_states):
        teacher_states = None
        if depth == 0:
            backbone_states = depth_states.detach()
        elif kl_weight:
            shift = min(depth, labels.shape[1])
            teacher_states = F.pad(backbone_states[:, shift:], (0, 0, 0, shift))  # (batch, time, hidden)
        targets = shift_within_documents(labels, depth + 1, position_ids, IGNORE_INDEX)
        weights = None
        if loss_weights is not None:
            weights = shift_within_documents(loss_weights, depth + 1, position_ids, 0)
        score = score_targets(head, depth_states, targets, weights=weights, teacher_states=teacher_states)
        scores.append(score.averaged(num_items_in_batch))
    losses = torch.stack([score.loss for score in scores])  # (1 + modules,)
    divergences = torch.stack([score.divergence for score in scores])
    num_targets = torch.stack([score.num_targets for score in scores])
    num_correct = torch.stack([score.num_correct for score in scores])
    modules = losses[1:]
    loss = losses[0] if head.weight.requires_grad or not len(modules) else torch.zeros_like(losses[0])
    if len(modules):
        loss = loss + mtp_weight * modules.mean() + kl_weight * divergences[1:].mean()
    return {
        "loss": loss,
        "main_loss": losses[0].detach(),
        "mtp_losses": modules.detach(),
        "mtp_kl": divergences[1:].detach() if kl_weight else None,
        "accuracies": num_correct / num_targets.clamp(min=1),
        "num_targets": num_targets,
    }

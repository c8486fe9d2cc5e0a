"""Training loss of the backbone and its multi-token-prediction modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models.head_loss import HeadLoss, Teacher
from vita_audio.models.packed_rows import shift_within_documents


@dataclass
class MTPOutput(CausalLMOutputWithPast):
    """Output of `Qwen2MTPForCausalLM`; what follows `loss` and `logits` is detached and for logging.

    Attributes:
        main_loss: Cross entropy of the backbone, scalar; part of `loss` only if the head trains. None if not scored.
        mtp_losses: Cross entropy of each module, (modules,).
        mtp_kl: Divergence of each module from the backbone, see `MTPLoss`, (modules,); None if its weight is 0.
        accuracies: Share of targets that are the most likely token, backbone first, (1 + modules,); NaN for a backbone
            that is not scored.
        num_targets: Number of targets, backbone first, (1 + modules,), int64.
    """

    main_loss: Tensor | None = None
    mtp_losses: Tensor | None = None
    mtp_kl: Tensor | None = None
    accuracies: Tensor | None = None
    num_targets: Tensor | None = None


class MTPLoss(nn.Module):
    """Training loss over all depths.

    The loss is that of the backbone (if the head trains, or there are no modules) plus `mtp_weight` times the mean over
    the modules. A depth without targets, in short documents or where all labels are masked, has loss 0.

    With `kl_weight` modules also learn what the backbone would have predicted in their place: that times the mean over
    the modules of their divergences is added. The divergence of depth d is the mean over its targets of
    KL(p || q) = sum over tokens t of p(t) log(p(t) / q(t)), where the module's q at place i and the backbone's p at
    place i + d are about the same token, i + d + 1. Both are softmaxes at temperature 1 over the whole vocabulary;
    p carries no gradients. Targets, their weights and the divisor are those of the module's cross entropy.

    This is a module, without parameters, because ZeRO-3 gathers a parameter for the module that uses it: the head is
    gathered for one call of this one, which every process makes, whatever its number of targets.
    """

    def forward(
        self,
        hidden_states: Sequence[Tensor],
        labels: Tensor,
        position_ids: Tensor,
        *,
        head: nn.Linear,
        mtp_weight: float = 1.0,
        kl_weight: float = 0.0,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        score_backbone: bool = True,
    ) -> dict[str, Tensor | None]:
        """Score every depth and add up the training loss.

        Args:
            hidden_states: Final-normed output of the backbone, of module 0 and so on, (batch, time, hidden) each.
            labels: (batch, time); depth d, counting the backbone as 0, predicts the label d + 1 tokens to the right.
            position_ids: (batch or 1, time); restarts at 0 where a packed document begins.
            head: The shared output layer.
            loss_weights: Factor of each label in the loss of every depth, (batch, time).
            num_items_in_batch: Divisor of every sum; None means the number of targets (the sum of their weights) of
                each. Where it is 0, the sums are 0 too, and so are the losses.
            score_backbone: Also score a backbone that is not part of the loss.
        Returns: `loss` and the logging fields of `MTPOutput`.
        Raises: TypeError if the head is not a plain linear layer without a bias.
        """
        weight = _plain_weight(head)
        num_depths = len(hidden_states)
        trains_backbone = weight.requires_grad or num_depths == 1
        first_depth = 0 if trains_backbone or score_backbone else 1
        targets, weights = _shifted_targets(labels, loss_weights, position_ids, num_depths)
        num_targets = (targets != IGNORE_INDEX).sum(dim=1)
        divisor = _divisor(weights, num_items_in_batch)
        depth, place = _rows(targets, first_depth)
        unit = divisor.min()  # the loss is divided by it last: float16 could not hold the gradients otherwise
        scale = weights[depth, place] * unit / divisor[depth]
        factors, kl_factors = _depth_factors(weights, trains_backbone, mtp_weight, kl_weight)[:, depth] * scale
        teacher = None
        if kl_weight:
            teacher = Teacher(hidden_states[0].detach().flatten(0, 1), place + depth, kl_factors)
        places = torch.stack(tuple(hidden_states[first_depth:])).flatten(0, 2)  # (depths x places, hidden)
        rows = places.index_select(0, (depth - first_depth) * targets.shape[1] + place)
        weight = weight if torch.is_grad_enabled() else weight.detach()  # or a gradient would be formed
        loss, entropies, divergences, correct = HeadLoss.apply(rows, weight, targets[depth, place], factors, teacher)
        sum_depths = partial(weights.new_zeros(num_depths).index_add, 0, depth)
        losses = sum_depths(entropies * scale) / unit
        accuracies = sum_depths(correct) / num_targets.clamp(min=1)
        accuracies[:first_depth] = torch.nan
        return {
            "loss": loss / unit,
            "main_loss": losses[0] if first_depth == 0 else None,
            "mtp_losses": losses[1:],
            "mtp_kl": sum_depths(divergences * scale)[1:] / unit if kl_weight else None,
            "accuracies": accuracies,
            "num_targets": num_targets,
        }


def _plain_weight(head: nn.Module) -> Tensor:
    if type(head) is not nn.Linear or head.bias is not None:
        raise TypeError(f"the loss needs an output layer that is a torch.nn.Linear without a bias, got {head}")
    return head.weight


def _rows(targets: Tensor, first_depth: int) -> tuple[Tensor, Tensor]:
    """Return depth and place of every target, (rows,) each; those of the same token come together."""
    depth, place = (targets[first_depth:] != IGNORE_INDEX).nonzero(as_tuple=True)
    depth = depth + first_depth
    order = (place + depth).argsort(stable=True)
    return depth[order], place[order]


def _shifted_targets(
    labels: Tensor, loss_weights: Tensor | None, position_ids: Tensor, num_depths: int
) -> tuple[Tensor, Tensor]:
    """Return what every depth predicts and the weights, 0 where there is no target, (depths, batch x time) each."""

    def shifted(values: Tensor, fill: int) -> Tensor:
        depths = [shift_within_documents(values, depth + 1, position_ids, fill) for depth in range(num_depths)]
        return torch.stack(depths).flatten(1)

    targets = shifted(labels, IGNORE_INDEX)
    weights = (targets != IGNORE_INDEX).float()
    return targets, weights if loss_weights is None else weights * shifted(loss_weights, 0)


def _depth_factors(weights: Tensor, trains_backbone: bool, mtp_weight: float, kl_weight: float) -> Tensor:
    """Return the factors of every depth's cross entropy and divergence in the loss, (2, depths)."""
    factors = weights.new_tensor([[mtp_weight], [kl_weight]]).repeat(1, len(weights)) / max(len(weights) - 1, 1)
    factors[:, 0] = weights.new_tensor([float(trains_backbone), 0.0])
    return factors


def _divisor(weights: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Return the divisor of every depth's sums, (depths,); 1 where it would be 0."""
    if num_items_in_batch is None:
        divisor = weights.sum(dim=1)
    else:
        divisor = torch.as_tensor(num_items_in_batch, device=weights.device).float().expand(len(weights))
    return torch.where(divisor > 0, divisor, 1)

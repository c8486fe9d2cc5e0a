"""Training loss of the backbone and its multi-token-prediction modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models.head_loss import HeadLoss, Teacher
from vita_audio.models.packed_rows import shift_within_documents


@dataclass
class MTPOutput(CausalLMOutputWithPast):
    """Output of `MTPForCausalLM`; what follows `loss` and `logits` is detached and for logging.

    Attributes:
        main_loss: Cross entropy of the backbone, scalar; part of `loss` only if the head trains. None if not scored.
        mtp_losses: Cross entropy of each module, (modules,).
        mtp_kl: Divergence of each module from the backbone, see `MTPLoss`, (modules,); None if its weight is 0.
        accuracies: Share of targets that are the most likely token, backbone first, (1 + modules,); NaN for a backbone
            that is not scored.
        num_targets: Number of targets, backbone first, (1 + modules,), int64.
        agreements: Share of each module's targets for which it predicts the backbone's token, (modules,); None if the
            backbone is not scored.
        audio_losses: Part of each depth's loss that audio codes contribute, (1 + modules,); None if `code_ids` is not
            given.
        num_audio_targets: Number of targets that are audio codes, (1 + modules,), int64; None as above.
        alignment: Contrastive loss between audio and text embeddings, see `alignment_loss`; None if its weight is 0.
        mixture: Cross entropy of the modules' mixed predictions, see `Coordinator`; None without a coordinator.
        mixture_weights: Mean weight of each module in the mixture, over its targets, (modules,); None as above.
    """

    main_loss: Tensor | None = None
    mtp_losses: Tensor | None = None
    mtp_kl: Tensor | None = None
    accuracies: Tensor | None = None
    num_targets: Tensor | None = None
    agreements: Tensor | None = None
    audio_losses: Tensor | None = None
    num_audio_targets: Tensor | None = None
    alignment: Tensor | None = None
    mixture: Tensor | None = None
    mixture_weights: Tensor | None = None


LOGGED = [item.name for item in fields(MTPOutput)[len(fields(CausalLMOutputWithPast)) :]]


class MTPLoss(nn.Module):
    """Training loss over all depths.

    The loss is that of the backbone (if it trains, or there are no modules) plus `mtp_weight` times the mean over
    the modules, each times its entry of `depth_weights`. A depth without targets, in short documents or where all
    labels are masked, has loss 0.

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
        depth_weights: Sequence[float] | None = None,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        trains_backbone: bool | None = None,
        score_backbone: bool = True,
        code_ids: range | None = None,
    ) -> dict[str, Tensor | None]:
        """Score every depth and add up the training loss.

        Args:
            hidden_states: Final-normed output of the backbone, of module 0 and so on, (batch, time, hidden) each.
            labels: (batch, time); depth d, counting the backbone as 0, predicts the label d + 1 tokens to the right.
            position_ids: (batch or 1, time); restarts at 0 where a packed document begins.
            head: The shared output layer.
            depth_weights: Factor of the cross entropy of depth 1, 2 and so on; None means 1.
            loss_weights: Factor of each label in the loss of every depth, (batch, time).
            num_items_in_batch: Divisor of every sum; where it is 0, so is the loss. None: its sum of target weights.
            trains_backbone: Whether the backbone's loss is part of the loss; None: if the head trains.
            score_backbone: Also score a backbone that is not part of the loss.
            code_ids: Ids of the audio codes, to report their part of the losses.
        Returns: `loss` and the fields of `MTPOutput` that are logged.
        Raises: TypeError if the head is not a plain linear layer without a bias.
        """
        weight = plain_weight(head)
        num_depths = len(hidden_states)
        trains_backbone = num_depths == 1 or (weight.requires_grad if trains_backbone is None else trains_backbone)
        first_depth = 0 if trains_backbone or score_backbone else 1
        targets, weights = shifted_targets(labels, loss_weights, position_ids, num_depths)
        num_targets = (targets != IGNORE_INDEX).sum(dim=1)
        divisor, unit = divisors(weights, num_items_in_batch)
        depth, place, labels = target_rows(targets, first_depth)
        scale = weights[depth, place] * unit / divisor[depth]
        factors, kl_factors = _factors(weights, trains_backbone, mtp_weight, kl_weight, depth_weights)[:, depth] * scale
        teacher = Teacher(hidden_states[0].detach().flatten(0, 1), place + depth, kl_factors) if kl_weight else None
        places = torch.stack(tuple(hidden_states[first_depth:])).flatten(0, 2)  # (depths x places, hidden)
        rows = places.index_select(0, (depth - first_depth) * targets.shape[1] + place)
        weight = weight if torch.is_grad_enabled() else weight.detach()  # or a gradient would be formed
        loss, entropies, divergences, predictions = HeadLoss.apply(rows, weight, labels, factors, teacher)
        sum_depths = partial(weights.new_zeros(num_depths).index_add, 0, depth)
        losses = sum_depths(entropies * scale) / unit
        return {
            "loss": loss / unit,
            "main_loss": losses[0] if first_depth == 0 else None,
            "mtp_losses": losses[1:],
            "mtp_kl": sum_depths(divergences * scale)[1:] / unit if kl_weight else None,
            "accuracies": _accuracies(sum_depths((predictions == labels).to(weights)), num_targets, first_depth),
            "num_targets": num_targets,
            "agreements": _agreements(depth, predictions, num_targets) if first_depth == 0 else None,
            **_audio_part(labels, entropies * scale / unit, sum_depths, code_ids),
        }


def _agreements(depth: Tensor, predictions: Tensor, num_targets: Tensor) -> Tensor:
    """Return the share of each module's targets for which it predicts the backbone's token, (modules,)."""
    # Rows of the same token are adjacent, and the backbone, which has every label that a module has, comes first.
    row = torch.arange(len(depth), device=depth.device)
    backbone_row = torch.where(depth == 0, row, 0).cummax(dim=0).values
    agree = predictions == predictions[backbone_row]
    counts = num_targets.new_zeros(len(num_targets)).index_add(0, depth, agree.to(num_targets))
    return (counts / num_targets.clamp(min=1))[1:]


def _audio_part(
    labels: Tensor, losses: Tensor, sum_depths: Callable[[Tensor], Tensor], code_ids: range | None
) -> dict[str, Tensor | None]:
    """Return the part of every depth's loss that audio codes contribute, and their number, (depths,) each."""
    if code_ids is None:
        return {"audio_losses": None, "num_audio_targets": None}
    is_audio = ((labels >= code_ids.start) & (labels < code_ids.stop)).to(losses)
    return {"audio_losses": sum_depths(losses * is_audio), "num_audio_targets": sum_depths(is_audio).long()}


def plain_weight(head: nn.Module) -> Tensor:
    """Return the weight of the head. Raises: TypeError if it is not a plain linear layer without a bias."""
    linear = getattr(head, "original_module", head)  # of peft, where rows of the head, or a copy of it, train
    if type(linear) is not nn.Linear or linear.bias is not None:
        raise TypeError(f"the loss needs an output layer that is a torch.nn.Linear without a bias, got {head}")
    return head.weight


def target_rows(targets: Tensor, first_depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return depth, place and token of every target, (rows,) each; those of the same token come together."""
    depth, place = (targets[first_depth:] != IGNORE_INDEX).nonzero(as_tuple=True)
    depth = depth + first_depth
    order = (place + depth).argsort(stable=True)
    depth, place = depth[order], place[order]
    return depth, place, targets[depth, place]


def shifted_targets(
    labels: Tensor, loss_weights: Tensor | None, position_ids: Tensor, num_depths: int
) -> tuple[Tensor, Tensor]:
    """Return what every depth predicts and the weights, 0 where there is no target, (depths, batch x time) each."""

    def shifted(values: Tensor, fill: int) -> Tensor:
        depths = [shift_within_documents(values, depth + 1, position_ids, fill) for depth in range(num_depths)]
        return torch.stack(depths).flatten(1)

    targets = shifted(labels, IGNORE_INDEX)
    weights = (targets != IGNORE_INDEX).float()
    return targets, weights if loss_weights is None else weights * shifted(loss_weights, 0)


def _factors(
    weights: Tensor,
    trains_backbone: bool,
    mtp_weight: float,
    kl_weight: float,
    depth_weights: Sequence[float] | None,
) -> Tensor:
    """Return the factors of every depth's cross entropy and divergence in the loss, (2, depths)."""
    factors = weights.new_tensor([[mtp_weight], [kl_weight]]).repeat(1, len(weights)) / max(len(weights) - 1, 1)
    if depth_weights is not None:
        factors[0, 1:] *= weights.new_tensor(depth_weights)
    factors[:, 0] = weights.new_tensor([float(trains_backbone), 0.0])
    return factors


def _accuracies(num_right: Tensor, num_targets: Tensor, first_depth: int) -> Tensor:
    """Return the share of each depth's targets that it predicts, (depths,); NaN for depths that are not scored."""
    accuracies = num_right / num_targets.clamp(min=1)
    accuracies[:first_depth] = torch.nan
    return accuracies


def divisors(weights: Tensor, num_items_in_batch: Tensor | int | None) -> tuple[Tensor, Tensor]:
    """Return the divisor of every depth's sums, (depths,), 1 where it would be 0, and the smallest of them, a scalar.

    The loss is divided by the smallest one last: float16 could not hold the gradients otherwise.
    """
    if num_items_in_batch is None:
        divisor = weights.sum(dim=1)
    else:
        divisor = torch.as_tensor(num_items_in_batch, device=weights.device).float().expand(len(weights))
    divisor = torch.where(divisor > 0, divisor, 1)
    return divisor, divisor.min()

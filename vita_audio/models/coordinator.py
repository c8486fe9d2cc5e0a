"""The coordinator: learned weights that mix what several MTP modules predict for the same token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vita_audio.models.head_loss import HeadLoss
from vita_audio.models.mtp_loss import divisors, plain_weight, shifted_targets, target_rows


class Coordinator(nn.ModuleList):
    """Scores the modules' predictions, with one vector for each module, and trains both on their mixture.

    The modules that predict a token have weights w, the softmax of their scores, and give the token probabilities p.
    The loss is the mean of -log sum(w p) over all tokens that any module predicts.

    It equals sum(-r log p) + KL(r || w), where r = w p / sum(w p) is the share of each module in the mixture, and the
    gradients of both are equal if r is held constant. So modules learn a token in proportion to their share, and scores
    learn to foresee the shares.
    """

    def __init__(self, hidden_size: int, num_modules: int):
        super().__init__(nn.Linear(hidden_size, 1, bias=False) for _ in range(num_modules))

    def forward(
        self,
        hidden_states: Sequence[Tensor],
        labels: Tensor,
        position_ids: Tensor,
        *,
        head: nn.Linear,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score the mixture; arguments are those of `MTPLoss.forward`, without the hidden states of the backbone.

        Returns: The loss, a scalar, and without gradients the mean weight of each module over its targets, (modules,).
        """
        weight = plain_weight(head)
        weight = weight if torch.is_grad_enabled() else weight.detach()  # or a gradient would be formed
        targets, target_weights = shifted_targets(labels, loss_weights, position_ids, 1 + len(self))
        divisor, unit = divisors(target_weights, num_items_in_batch)
        depth, place, tokens = target_rows(targets, 1)
        module = depth - 1
        scale = target_weights[depth, place] * unit / divisor[1]  # the first module has every token of the others
        rows = torch.stack(tuple(hidden_states)).flatten(1, 2)[module, place]
        scores = torch.cat([score(states) for score, states in zip(self, hidden_states, strict=True)], dim=-1)
        _, group = (place + depth).unique_consecutive(return_inverse=True)  # rows of the same token
        log_weights = _log_softmax(scores.flatten(0, 1)[place, module].float(), group)
        entropies = HeadLoss.apply(rows.detach(), weight.detach(), tokens, scale, None)[1]
        log_shares = _log_softmax(log_weights.detach() - entropies, group)
        shares = scale * log_shares.exp()
        loss = HeadLoss.apply(rows, weight, tokens, shares, None)[0] + (shares * (log_shares - log_weights)).sum()
        sums = divisor.new_zeros(len(self)).index_add(0, module, log_weights.detach().exp())
        return loss / unit, sums / module.bincount(minlength=len(self)).clamp(min=1)


def _log_softmax(values: Tensor, group: Tensor) -> Tensor:
    """Return the log-softmax over the values of each group, (values,)."""
    largest = torch.full_like(values, -torch.inf).scatter_reduce(0, group, values.detach(), "amax")
    values = values - largest[group]
    return values - torch.zeros_like(values).index_add(0, group, values.exp())[group].log()

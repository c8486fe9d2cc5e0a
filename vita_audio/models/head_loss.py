"""Output layer and cross entropy in one, without the logits of all rows in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_CHUNK_LOGITS = 2**25  # logits of a chunk of rows, unless the head is more than four times as large


@dataclass
class Teacher:
    """The backbone, whose predictions the modules learn.

    Attributes:
        hidden_states: Output of the backbone, without gradients, (places, hidden).
        places: For each row the place that predicts the same token, (rows,); equal ones are adjacent.
        factors: Factor of each row's divergence in the loss, float32, (rows,).
    """

    hidden_states: Tensor
    places: Tensor
    factors: Tensor

    def log_probs(self, rows: slice, head: Tensor) -> Tensor:
        """Return what is predicted for `rows`, (rows, vocabulary), scoring every place once."""
        places, inverse = self.places[rows].unique_consecutive(return_inverse=True)
        return (self.hidden_states[places].to(head.dtype) @ head.T).float().log_softmax(dim=-1)[inverse]


def chunk_rows(weight: Tensor) -> int:
    """Return the largest number of rows that a head of shape (vocabulary, hidden) scores at once.

    A large head gets more rows, so that the time spent reading it and adding to its gradient stays small.
    """
    return max(1, max(MIN_CHUNK_LOGITS, weight.numel() // 4) // weight.shape[0])


class HeadLoss(torch.autograd.Function):
    """Weighted cross entropy of rows and divergence from a teacher; the gradients are formed in the forward pass.

    Rows are scored in chunks, whose logits are dropped before the next chunk and never computed again. The head has
    one gradient, to which all chunks add in place.
    """

    # torch.nn.functional.linear_cross_entropy and Liger's kernel work alike, but support neither factors of rows nor
    # a teacher nor accuracies: every depth would need a call, and a head gradient, of its own.

    @staticmethod
    def forward(
        ctx, hidden_states: Tensor, weight: Tensor, targets: Tensor, factors: Tensor, teacher: Teacher | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score rows.

        Args:
            hidden_states: (rows, hidden).
            weight: Weight of the head, (vocabulary, hidden).
            targets: Token to predict, (rows,).
            factors: Factor of each row's cross entropy in the loss, float32, (rows,).
            teacher: Predicts the same tokens; None if the rows learn their targets only.
        Returns: The loss, a scalar, and for each row, float32 without gradients: its cross entropy, its divergence from
            the teacher (0 without one), and 1 if its target is the most likely token.
        """
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        head = weight.to(dtype)
        trains_states, trains_head = ctx.needs_input_grad[:2]
        state_grads = torch.zeros_like(hidden_states) if trains_states else None
        head_grad = torch.zeros_like(weight) if trains_head else None
        entropies, divergences, correct = torch.zeros((3, len(targets)), device=targets.device)
        num_rows = chunk_rows(weight)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), num_rows):
                chunk = slice(start, start + num_rows)
                states, target = hidden_states[chunk].to(dtype), targets[chunk, None]
                logits = (states @ head.T).float()  # (rows of the chunk, vocabulary)
                correct[chunk] = (logits.argmax(dim=-1) == targets[chunk]).float()
                log_probs = logits.log_softmax(dim=-1)
                del logits
                entropies[chunk] = -log_probs.gather(1, target).squeeze(1)
                taught = None if teacher is None else teacher.log_probs(chunk, head)
                if teacher is not None:
                    divergences[chunk] = (taught.exp() * (taught - log_probs)).sum(dim=-1)
                if not (trains_states or trains_head):
                    continue
                taught_factor = None if teacher is None else teacher.factors[chunk, None]
                gradient = _logit_gradient(log_probs, target, factors[chunk, None], taught, taught_factor).to(dtype)
                if trains_states:
                    state_grads[chunk] = gradient @ head
                if trains_head:
                    _add_product(head_grad, gradient.T, states)
        loss = (entropies * factors).sum()
        if teacher is not None:
            loss = loss + (divergences * teacher.factors).sum()
        ctx.gradients = state_grads, head_grad
        ctx.mark_non_differentiable(entropies, divergences, correct)
        return loss, entropies, divergences, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward has used up the gradients of this loss; compute the loss again")
        gradients = [None if gradient is None else gradient.mul_(loss_grad) for gradient in ctx.gradients]
        ctx.gradients = None
        return *gradients, None, None, None


def _logit_gradient(
    log_probs: Tensor, target: Tensor, factor: Tensor, taught: Tensor | None, taught_factor: Tensor | None
) -> Tensor:
    """Return the gradient of the loss with respect to the logits; overwrites `log_probs` and `taught`."""
    gradient = log_probs.exp_()
    if taught is None:
        gradient.mul_(factor)
    else:
        gradient.mul_(factor + taught_factor).sub_(taught.exp_().mul_(taught_factor))
    return gradient.scatter_add_(1, target, -factor)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:  # autocast: float32 weights, bfloat16 products
        total.add_(left @ right)

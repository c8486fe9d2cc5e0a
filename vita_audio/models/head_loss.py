"""Output layer and cross entropy in one, without the logits of all rows in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_CHUNK_LOGITS = 2**22  # logits of a chunk of rows: 16 MiB, which the caches of a CPU still help with


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
        Returns: The loss, a scalar, and for each row without gradients: its cross entropy and its divergence from the
            teacher (0 without one), float32, and the most likely token, int64.
        """
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        head = weight.to(dtype)
        trains_states, trains_head = ctx.needs_input_grad[:2]
        state_grads = torch.zeros_like(hidden_states) if trains_states else None
        head_grad = torch.zeros_like(weight) if trains_head else None
        entropies, divergences = torch.zeros((2, len(targets)), device=targets.device)
        predictions = torch.zeros_like(targets)
        num_rows = chunk_rows(weight)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), num_rows):
                chunk = slice(start, start + num_rows)
                states = hidden_states[chunk].to(dtype)
                taught = None if teacher is None else (teacher.log_probs(chunk, head), teacher.factors[chunk])
                logits = (states @ head.T).float()
                predictions[chunk] = logits.argmax(dim=-1)
                entropies[chunk], divergences[chunk], gradient = _score(
                    logits, targets[chunk], factors[chunk], taught, wants_gradient=trains_states or trains_head
                )
                if trains_states:
                    state_grads[chunk] = gradient.to(dtype) @ head
                if trains_head:
                    _add_product(head_grad, gradient.to(dtype).T, states)
                del taught, logits, gradient  # before the next chunk
        loss = (entropies * factors).sum()
        if teacher is not None:
            loss = loss + (divergences * teacher.factors).sum()
        ctx.gradients = state_grads, head_grad
        ctx.mark_non_differentiable(entropies, divergences, predictions)
        return loss, entropies, divergences, predictions

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward has used up the gradients of this loss; compute the loss again")
        gradients = [None if gradient is None else gradient.mul_(loss_grad) for gradient in ctx.gradients]
        ctx.gradients = None
        return *gradients, None, None, None


def _score(
    logits: Tensor, targets: Tensor, factors: Tensor, taught: tuple[Tensor, Tensor] | None, *, wants_gradient: bool
) -> tuple[Tensor, Tensor | float, Tensor | None]:
    """Score the rows of a chunk.

    Args:
        logits: (rows, vocabulary).
        targets: (rows,).
        factors: Factor of each row's cross entropy in the loss, (rows,).
        taught: What the teacher predicts, (rows, vocabulary), overwritten; and the factor of each row's divergence.
    Returns: By row: cross entropy and divergence; and the gradient of the loss with respect to the logits, (rows,
        vocabulary).
    """
    target = targets[:, None]
    log_probs = logits.log_softmax(dim=-1)
    entropies, divergences, gradient = -log_probs.gather(1, target).squeeze(1), 0.0, None
    if taught is not None:
        divergences = (taught[0].exp() * (taught[0] - log_probs)).sum(dim=-1)
    if wants_gradient:
        gradient = log_probs.exp_()
        if taught is None:
            gradient.mul_(factors[:, None])
        else:
            log_taught, taught_factors = taught
            gradient.mul_((factors + taught_factors)[:, None]).sub_(log_taught.exp_().mul_(taught_factors[:, None]))
        gradient.scatter_add_(1, target, -factors[:, None])
    return entropies, divergences, gradient


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:  # autocast: float32 weights, bfloat16 products
        total.add_(left @ right)

"""How the tokens that MTP modules draft become final: at once, or once the backbone has accepted or replaced them.

A backbone pass reads all tokens it has not read yet in one causal call, so the same pass that makes its next token also
says what it thinks of the drafts before. As in speculative decoding (Leviathan et al., arXiv 2211.17192), the first
rejected draft is replaced by a token of the backbone and later ones are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

FirstChunk = Literal["verified", "committed"]


@dataclass(frozen=True)
class Verification:
    """How the tokens of modules become final.

    Attributes:
        acceptance: 0: at once. Above 0: once the backbone accepts them, see `judge_greedy` and `judge_sampled`.
        first_chunk: "committed" makes the drafts before the backbone's next pass final at once the first time that
            there are any, so that a stream can start to speak; "verified" makes no difference between drafts.
    """

    acceptance: float = 0.0
    first_chunk: FirstChunk = "verified"

    def __post_init__(self):
        if isinstance(self.acceptance, bool) or not isinstance(self.acceptance, Real) or not 0 <= self.acceptance <= 1:
            raise ValueError(f"acceptance must be a number from 0 to 1, got {self.acceptance!r}")
        if self.first_chunk not in get_args(FirstChunk):
            raise ValueError(f"first_chunk must be one of {get_args(FirstChunk)}, got {self.first_chunk!r}")


def choose_tokens(scores: Tensor, do_sample: bool) -> Tensor:
    """Draw a token for each row of scores, (rows, vocabulary), or take the most likely one."""
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)


def judge_greedy(scores: Tensor, drafts: Tensor, num_drafts: Tensor, acceptance: float) -> tuple[Tensor, Tensor]:
    """Accept drafts with p(draft) >= acceptance * max p, where p is the backbone's softmax of `scores`.

    At acceptance 1 only the backbone's own choice passes, even where another token has exactly the same score.

    Args:
        scores: Of the drafts' places and the one after them, (rows, drafts + 1, vocabulary).
        drafts: (rows, drafts).
        num_drafts: How many of them each row has, (rows,).
    Returns: How many drafts of each row are accepted, (rows,), and the backbone's token after them, (rows,).
    """
    best = scores.argmax(dim=-1)  # (rows, drafts + 1)
    is_accepted = drafts == best[:, :-1]
    if acceptance < 1:
        draft_scores, best_scores = _at(scores[:, :-1], drafts), _at(scores, best)[:, :-1]
        is_accepted |= draft_scores >= best_scores + math.log(acceptance)
    num_accepted = _count_accepted(is_accepted, num_drafts)
    return num_accepted, _at(best, num_accepted)


def judge_sampled(
    scores: Tensor, drafts: Tensor, num_drafts: Tensor, acceptance: float, *, draft_probs: Tensor
) -> tuple[Tensor, Tensor]:
    """Accept sampled drafts, and draw the token after them.

    With the backbone's distribution p and the module's q, both after processors and warpers, a draft x is accepted with
    probability min(1, p(x) / (acceptance * q(x))). A rejected one is replaced by a sample of max(0, p - q), normalised.
    This is algorithm 1 of arXiv 2211.17192 with the lenience of its appendix A.5, where `acceptance` is the paper's l.
    At 1 the result has exactly the distribution p. Below 1, no token is more likely than p(x) / acceptance.

    Args:
        draft_probs: q, (rows, drafts, vocabulary). Other arguments and the result are as in `judge_greedy`.
    """
    probs = scores.softmax(dim=-1)
    limits = torch.rand(drafts.shape, device=probs.device) * acceptance * _at(draft_probs, drafts)
    num_accepted = _count_accepted(limits < _at(probs[:, :-1], drafts), num_drafts)
    rows = torch.arange(len(probs), device=probs.device)
    probs = probs[rows, num_accepted]  # (rows, vocabulary)
    is_rejected = (num_accepted < num_drafts)[:, None]
    rejected_probs = draft_probs[rows, num_accepted.clamp(max=drafts.shape[1] - 1)] * is_rejected
    residual = (probs - rejected_probs).clamp(min=0)
    return num_accepted, torch.multinomial(torch.where(residual.any(dim=-1, keepdim=True), residual, probs), 1)[:, 0]


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index[..., None])[..., 0]


def _count_accepted(is_accepted: Tensor, num_drafts: Tensor) -> Tensor:
    exists = torch.arange(is_accepted.shape[1], device=is_accepted.device) < num_drafts[:, None]
    return (is_accepted & exists).int().cumprod(dim=1).sum(dim=1)

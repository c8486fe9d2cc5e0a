"""Verified decoding: the backbone reads the tokens that MTP modules have drafted and accepts them or replaces them.

A backbone pass reads all tokens it has not read yet in one causal call, so the same pass that makes its next token also
says what it thinks of the drafts before. As in speculative decoding (Leviathan et al., arXiv 2211.17192), the first
rejected draft is replaced by a token of the backbone and later ones are dropped.

Rows of a batch share every pass and keep lengths of their own (`SlotReader`). A cycle is one backbone pass followed by
the modules in turn; a row that may not draft waits for the others, so each row decodes as it would alone, and a batch
needs as many cycles as its slowest row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from vita_audio.interleave import BACKBONE, InterleavePlan
from vita_audio.models.decode_state import DecodeState, MTPModel
from vita_audio.models.decode_step import DecodeStep, choose_tokens
from vita_audio.models.slots import SlotReader

FirstChunk = Literal["verified", "committed"]


def accept_greedy(scores: Tensor, draft: Tensor, acceptance: float) -> bool:
    """Accept a draft if p(draft) >= acceptance * max p, where p is the backbone's softmax of `scores`, (vocabulary,).

    At acceptance 1 only the backbone's own choice passes, even where another token has exactly the same score.
    """
    best = scores.argmax()
    return bool(draft == best) or (acceptance < 1 and bool(scores[draft] >= scores[best] + math.log(acceptance)))


def accept_sampled(scores: Tensor, draft: Tensor, draft_probs: Tensor, acceptance: float) -> Tensor | None:
    """Accept a sampled draft, or draw a token in its place.

    With the backbone's distribution p and the module's q, both after processors and warpers, a draft x is accepted with
    probability min(1, p(x) / (acceptance * q(x))). A rejected one is replaced by a sample of max(0, p - q), normalised.
    This is algorithm 1 of arXiv 2211.17192 with the lenience of its appendix A.5, where `acceptance` is the paper's l.
    At 1 the result has exactly the distribution p. Below 1, no token is more likely than p(x) / acceptance.

    Args:
        scores: The backbone's scores, (vocabulary,).
        draft_probs: q, (vocabulary,).
    Returns: None if the draft is accepted, otherwise the token in its place.
    """
    probs = scores.softmax(dim=-1)
    if torch.rand((), device=probs.device) * acceptance * draft_probs[draft] < probs[draft]:
        return None
    residual = (probs - draft_probs).clamp(min=0)
    return torch.multinomial(residual if residual.any() else probs, num_samples=1)[0]


@dataclass(frozen=True)
class Verification:
    """How the tokens of modules become final.

    Attributes:
        acceptance: 0: at once. Above 0: once the backbone accepts them, see `accept_greedy` and `accept_sampled`.
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


@dataclass
class _Decided:
    """A final token of one row; fields as in `DecodeStep`."""

    token: Tensor
    depth: int
    draft: int
    scores: Tensor | None
    logits: Tensor | None


@dataclass
class _Row:
    """One row of the batch.

    Attributes:
        index: Its place in the batch.
        place: Final tokens of the answer so far; the index of the next one.
        since_backbone: Distance of that next token from the last one that the backbone made.
        drafts: Depth and, when sampling, distribution of each draft that is not verified yet.
        decided: Final tokens that have not been handed on.
        scores: Scores of all final tokens, if wanted.
        has_ended: A stopping criterion has been met.
    """

    index: int
    place: int = 0
    since_backbone: int = 1
    drafts: list[tuple[int, Tensor | None]] = field(default_factory=list)
    decided: deque[_Decided] = field(default_factory=deque)
    scores: list[Tensor] = field(default_factory=list)
    has_ended: bool = False


@dataclass
class VerifiedDecoding:
    """One generation with verification; arguments as in `mtp_steps`.

    Attributes:
        verification: With an acceptance above 0.
        pad_id: Token of rows that have ended; None: 0.
        module_head: Makes the modules' logits of their hidden states.
    """

    model: MTPModel
    state: DecodeState
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    plan: InterleavePlan
    verification: Verification
    pad_id: int | None
    module_head: Callable[[Tensor], Tensor]

    def __post_init__(self):
        config = self.generation_config
        self._keeps_scores = config.return_dict_in_generate and config.output_scores
        self._reader = SlotReader(self.model, self.state)
        self._rows = [_Row(index) for index in range(len(self.state.tokens))]

    @torch.no_grad()  # around each step, so that the consumer of the generator keeps its own grad mode
    def steps(self) -> Generator[DecodeStep, None, None]:
        """Yield final tokens only; when closed or failed, the state holds the tokens handed on and their caches."""
        try:
            commits = self.verification.first_chunk == "committed"
            while not all(row.has_ended for row in self._rows):
                self._verify()
                yield from self._hand_on()
                depth = 1
                while self._draft(depth, commits):
                    yield from self._hand_on()
                    depth += 1
                commits = commits and depth == 1  # nothing was drafted yet
        finally:
            self._reader.store(self.state)

    def _verify(self) -> None:
        """Let the backbone read, judge the drafts of each row, and make the token after them."""
        reader = self._reader
        hidden_states, starts = reader.read(BACKBONE)
        num_scored = 1 + max(len(row.drafts) for row in self._rows)
        places = [reader.lengths[row.index] - 1 - len(row.drafts) - starts[row.index] for row in self._rows]
        places = torch.tensor(places)[:, None] + torch.arange(num_scored)
        places = places.clamp(0, hidden_states.shape[1] - 1).to(hidden_states.device)
        hidden_states = hidden_states.gather(1, places[..., None].expand(-1, -1, hidden_states.shape[-1]))
        logits = self.model.lm_head(hidden_states).float().to(reader.tokens.device)  # (batch, scored, vocabulary)
        rows = [row for row in self._rows if not row.has_ended]
        for number in range(num_scored):
            places = [reader.lengths[row.index] - len(row.drafts) for row in rows]
            scores = self._process(rows, places, logits[:, number])
            items = zip(rows, places, scores, strict=True)
            rows = [row for row, *item in items if self._verify_token(row, *item, logits[row.index, number][None])]

    def _verify_token(self, row: _Row, place: int, scores: Tensor, logits: Tensor) -> bool:
        """Make the token of a row at a position final; return whether the one after it can be, too."""
        depth, probs = row.drafts.pop(0) if row.drafts else (BACKBONE, None)
        draft = self._reader.prefix(place + 1)[row.index, -1]
        token = self._judge(scores, draft, depth, probs)
        if token is not None:
            self._reader.crop(row.index, place)
            self._reader.append(row.index, token)
        self._decide(row, place, BACKBONE if token is not None else depth, draft=depth, scores=scores, logits=logits)
        if row.has_ended:
            self._reader.crop(row.index, place + 1)
        if row.has_ended or token is not None:
            row.drafts.clear()
            return False
        return True

    def _judge(self, scores: Tensor, draft: Tensor, depth: int, probs: Tensor | None) -> Tensor | None:
        """Return the backbone's token, or None if a draft is accepted; arguments as in `_verify_token`."""
        if depth == BACKBONE:
            return choose_tokens(scores, self.generation_config.do_sample)[0]
        if probs is not None:
            return accept_sampled(scores[0], draft, probs, self.verification.acceptance)
        return None if accept_greedy(scores[0], draft, self.verification.acceptance) else scores[0].argmax()

    def _draft(self, depth: int, commits: bool) -> bool:
        """Let one depth predict the next token of each row whose plan wants it; return whether any does."""
        reader, rows = self._reader, [row for row in self._rows if self._wants(row, depth, commits)]
        if not rows:
            return False
        hidden_states, starts = reader.read(depth)
        ends = [length - 1 - start for length, start in zip(reader.lengths, starts, strict=True)]
        last = torch.tensor(ends).clamp(0, hidden_states.shape[1] - 1).to(hidden_states.device)
        last = hidden_states[torch.arange(len(ends), device=last.device), last]
        logits = self.module_head(last).float().to(reader.tokens.device)  # (batch, vocabulary)
        places = [reader.lengths[row.index] for row in rows]
        for row, place, scores in zip(rows, places, self._process(rows, places, logits), strict=True):
            reader.append(row.index, choose_tokens(scores, self.generation_config.do_sample)[0])
            if commits:
                self._decide(row, place, depth, draft=BACKBONE, scores=scores, logits=logits[row.index][None])
            else:
                row.drafts.append((depth, scores[0].softmax(dim=-1) if self.generation_config.do_sample else None))
        return True

    def _wants(self, row: _Row, depth: int, commits: bool) -> bool:
        """Tell whether a row's next token is to be drafted by this depth."""
        length, max_length = self._reader.lengths[row.index] - self._reader.offset, self.generation_config.max_length
        if row.has_ended or (max_length is not None and not commits and length >= max_length - 1):
            return False  # the backbone makes the last token, since it has to read the drafts before it anyway
        num_modules = self.model.config.num_nextn_predict_layers
        return self.plan.depth(row.place + len(row.drafts), row.since_backbone + len(row.drafts), num_modules) == depth

    def _process(self, rows: list[_Row], places: list[int], logits: Tensor) -> list[Tensor]:
        """Return the scores of each row's token at its position, (1, vocabulary) each, from logits of the whole batch.

        Processors get whole batches, since some of them hold values for each row, so those positions are processed
        together which are the same.
        """
        if not self.logits_processor:
            return [logits[row.index][None] for row in rows]
        scores = {place: self.logits_processor(self._reader.prefix(place), logits.clone()) for place in set(places)}
        return [scores[place][row.index][None] for row, place in zip(rows, places, strict=True)]

    def _decide(self, row: _Row, place: int, depth: int, *, draft: int, scores: Tensor, logits: Tensor) -> None:
        """Make the token of a row at a position final, and end the row if that is its end."""
        prefix, config = self._reader.prefix(place + 1)[row.index][None], self.generation_config
        kept = scores if config.output_scores else None, logits if config.output_logits else None  # they are large
        row.decided.append(_Decided(prefix[0, -1], depth, draft, *kept))
        row.scores += [scores] if self._keeps_scores else []
        row.place += 1
        row.since_backbone = 1 if depth == BACKBONE else depth + 1
        row.has_ended = bool(self.stopping_criteria(prefix, tuple(row.scores) or None).all())

    def _hand_on(self) -> Generator[DecodeStep, None, None]:
        """Yield the tokens for which no row has to be waited for."""
        while any(row.decided for row in self._rows) and all(row.decided or row.has_ended for row in self._rows):
            items = [row.decided.popleft() if row.decided else None for row in self._rows]
            some = next(item for item in items if item is not None)
            pad = torch.full_like(some.token, 0 if self.pad_id is None else self.pad_id)
            tokens = torch.stack([pad if item is None else item.token for item in items])
            self.state.append(tokens)
            yield DecodeStep(
                tokens,
                torch.tensor([item is not None for item in items], device=tokens.device),
                tuple(BACKBONE if item is None else item.depth for item in items),
                tuple(BACKBONE if item is None else item.draft for item in items),
                self._stack(items, "scores") if self.generation_config.output_scores else None,
                self._stack(items, "logits") if self.generation_config.output_logits else None,
            )

    @staticmethod
    def _stack(items: list[_Decided | None], name: str) -> Tensor:
        values = [None if item is None else getattr(item, name) for item in items]
        zeros = torch.zeros_like(next(value for value in values if value is not None))
        return torch.cat([zeros if value is None else value for value in values])

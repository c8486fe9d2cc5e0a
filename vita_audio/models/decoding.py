"""The decoding loop: the backbone makes a token, modules draft the next ones, and so on in cycles.

In committed decoding (acceptance 0) drafts are final at once. In verified decoding the next backbone pass judges them
first. Everything else is the same.

Rows of a batch share every pass and keep lengths of their own. A row that may not draft waits for the others, so each
row decodes as it would alone, and a batch needs as many cycles as its slowest row. Rows that have ended take part in
nothing any more.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from vita_audio.interleave import BACKBONE, InterleavePlan
from vita_audio.models.decode_state import DecodeState, MTPModel
from vita_audio.models.decode_step import DecodeStep
from vita_audio.models.lean_layers import LeanLayers
from vita_audio.models.module_head import ModuleHead
from vita_audio.models.slots import place_index
from vita_audio.models.verification import Verification, choose_tokens, judge_greedy, judge_sampled


@dataclass
class _Row:
    """A row that is still decoded.

    Attributes:
        index: Its place in the batch.
        num_final: Final positions, prompt and answer.
        num_drafts: Drafts behind them.
        depth: Depth that made its latest token.
    """

    index: int
    num_final: int
    num_drafts: int = 0
    depth: int = BACKBONE


@dataclass
class _Place:
    """One place of the answer in all rows; fields as in `DecodeStep`."""

    depths: list[int]
    drafts: list[int]
    is_new: list[bool]
    scores: Tensor | None = None
    logits: Tensor | None = None


@dataclass
class Decoding:
    """One generation; arguments as in `mtp_steps`.

    Attributes:
        state: With the prompt; see `begin_decoding`.
        pad_id: Token of rows that have ended.
        module_head: Makes the modules' logits where it fits; None: the model's head makes all.
    """

    model: MTPModel
    state: DecodeState
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    plan: InterleavePlan
    verification: Verification
    pad_id: int
    module_head: ModuleHead | None
    _places: list[_Place] = field(default_factory=list)
    _draft_probs: list[Tensor] = field(default_factory=list)  # of each depth, (rows, vocabulary)

    def __post_init__(self):
        self._num_prompt = self.state.length
        self._rows = [_Row(index, self._num_prompt) for index in self.state.order]
        self._layers = LeanLayers.of(self.model) or self.model
        self._num_modules = self.model.config.num_nextn_predict_layers  # a config looks its fields up slowly
        config = self.generation_config
        needs_logits = config.do_sample or config.output_scores or config.output_logits
        self._needs_logits = bool(self.logits_processor or needs_logits)

    @torch.no_grad()  # around each step, so that the consumer of the generator keeps its own grad mode
    def steps(self) -> Generator[DecodeStep, None, None]:
        """Yield final tokens only; when closed or failed, the state holds the tokens handed on and their slots."""
        is_committed = self.verification.acceptance == 0
        commits = is_committed or self.verification.first_chunk == "committed"
        try:
            while self._rows:
                self._pass_backbone()
                yield from self._hand_on()
                for depth in count(1):
                    if not self._draft(depth, commits):
                        break
                    yield from self._hand_on()
                commits = is_committed or (commits and depth == 1)  # nothing was drafted yet
        finally:
            self.state.crop(self.state.length)

    def _pass_backbone(self) -> None:
        """Let the backbone read, judge the drafts of each row, and make the token after them."""
        firsts = [row.num_final for row in self._rows]
        num_drafts = [row.num_drafts for row in self._rows]
        logits = self._logits(self.model.lm_head, self._read(BACKBONE, firsts, 1 + max(num_drafts)))
        wanted = [range(first, first + number + 1) for first, number in zip(firsts, num_drafts, strict=True)]
        scores = self._process(logits, firsts, wanted)
        if max(num_drafts) == 0:
            num_accepted, tokens = [0] * len(firsts), self._choose(scores[:, 0])
        else:
            num_accepted, tokens = self._judge(scores, firsts, num_drafts)
        ends = [first + number for first, number in zip(firsts, num_accepted, strict=True)]
        self.state.write(ends, tokens)
        for place, (row, number, end) in enumerate(zip(self._rows, num_accepted, ends, strict=True)):
            self.state.crop_row(place, end)
            self.state.lengths[place] += 1
            drafted = [depth if depth <= row.num_drafts else BACKBONE for depth in range(1, number + 2)]
            self._record(row, [*range(1, number + 1), BACKBONE], drafted)
        self._finish(firsts, scores, logits)

    def _draft(self, depth: int, commits: bool) -> bool:
        """Let one depth predict the next token of each row whose plan wants it; return whether any does."""
        columns = self.state.lengths[: len(self._rows)]
        wants = [self._wants(row, column, depth, commits) for row, column in zip(self._rows, columns, strict=True)]
        if not any(wants):
            return False
        hidden_states, head = self._read(depth, columns, 1), self._head(columns)
        logits = scores = None
        if head is self.module_head and not self._needs_logits:
            tokens = head.best_tokens(hidden_states[:, 0]).to(self.state.device)
        else:
            logits = self._logits(head, hidden_states)
            wanted = [range(column, column + want) for column, want in zip(columns, wants, strict=True)]
            scores = self._process(logits, columns, wanted)
            tokens = self._choose(scores[:, 0])
        self.state.write(columns, tokens)
        if self.generation_config.do_sample and not commits:
            self._draft_probs.append(scores[:, 0].softmax(dim=-1))
        for place, (row, want) in enumerate(zip(self._rows, wants, strict=True)):
            if want:
                self.state.lengths[place] += 1
                row.depth = depth
                row.num_drafts += not commits
                if commits:
                    self._record(row, [depth], [BACKBONE])
        if commits:
            self._finish(columns, scores, logits)
        return True

    def _wants(self, row: _Row, column: int, depth: int, commits: bool) -> bool:
        """Tell whether a row's next token is to be drafted by this depth."""
        max_length = self.generation_config.max_length
        if max_length is not None and not commits and column - self.state.offset >= max_length - 1:
            return False  # the backbone makes the last token, since it has to read the drafts before it anyway
        number = column - self._num_prompt
        return row.depth == depth - 1 and self.plan.depth(number, depth, self._num_modules) == depth

    def _read(self, depth: int, columns: Sequence[int], width: int) -> Tensor:
        """Let a depth read; return what predicts the tokens from a column of each row on, (rows, width, hidden)."""
        hidden_states, starts = self.state.read(self.model, depth, self._layers)
        firsts = [column - 1 - start for column, start in zip(columns, starts, strict=True)]
        rows, places = place_index(firsts, width, device=hidden_states.device)
        if isinstance(places, Tensor):  # rows with fewer drafts have fewer than `width` places that mean anything
            places = places.clamp(max=hidden_states.shape[1] - 1)
        return hidden_states[rows, places]

    def _head(self, columns: Sequence[int]) -> nn.Module | ModuleHead:
        """Return the head with which modules score a column of each row."""
        if self.module_head is None:
            return self.model.lm_head
        latest = self.state.ids_at([column - 1 for column in columns], 1)
        return self.module_head if self.module_head.fits(latest) else self.model.lm_head

    def _logits(self, head: nn.Module | ModuleHead, hidden_states: Tensor) -> Tensor:
        """Score tokens, (rows, width, vocabulary), float32."""
        return head(hidden_states).float().to(self.state.device)

    def _choose(self, scores: Tensor) -> Tensor:
        return choose_tokens(scores, bool(self.generation_config.do_sample))

    def _process(self, logits: Tensor, firsts: Sequence[int], wanted: Sequence[range]) -> Tensor:
        """Return the scores of the wanted columns of each row, from logits that begin at a column of each row.

        Processors get whole batches, since some of them hold values for each row, column by column.
        """
        if not self.logits_processor:
            return logits
        scores = logits.clone()
        batch = logits.new_zeros((len(self.state.order), logits.shape[-1]))  # rows without a wanted column: any values
        for column in sorted(set().union(*wanted)):
            places = [place for place, columns in enumerate(wanted) if column in columns]
            numbers = [column - firsts[place] for place in places]
            rows = [self._rows[place].index for place in places]
            batch[rows] = logits[places, numbers]
            scores[places, numbers] = self.logits_processor(self.state.prefix(column), batch)[rows]
        return scores

    def _judge(self, scores: Tensor, firsts: Sequence[int], num_drafts: Sequence[int]) -> tuple[list[int], Tensor]:
        """Return how many drafts of each row are accepted, and the backbone's token after them, (rows,)."""
        drafts = self.state.ids_at(firsts, max(num_drafts))
        arguments = scores, drafts, torch.tensor(num_drafts, device=drafts.device), self.verification.acceptance
        if self.generation_config.do_sample:
            accepted, tokens = judge_sampled(*arguments, draft_probs=torch.stack(self._draft_probs, dim=1))
            self._draft_probs.clear()
        else:
            accepted, tokens = judge_greedy(*arguments)
        return accepted.tolist(), tokens

    def _record(self, row: _Row, depths: Sequence[int], drafts: Sequence[int]) -> None:
        """Make the next tokens of a row final, of which depths and drafts are given."""
        for depth, draft in zip(depths, drafts, strict=True):
            number = row.num_final - self._num_prompt
            if number == len(self._places):
                batch_size = len(self.state.order)  # rows that have ended follow the others
                self._places.append(_Place([depth] * batch_size, [draft] * batch_size, [False] * batch_size))
            place = self._places[number]
            place.depths[row.index], place.drafts[row.index], place.is_new[row.index] = depth, draft, True
            row.num_final += 1
        row.depth, row.num_drafts = depths[-1], 0

    def _finish(self, firsts: Sequence[int], scores: Tensor | None, logits: Tensor | None) -> None:
        """Keep the scores of tokens that have become final, and end the rows that have met a stopping criterion.

        Args:
            firsts: First new column of each row, where scores and logits begin.
            scores, logits: None only if the generation config asks for neither.
        """
        config, ended = self.generation_config, {}
        news = [range(first, row.num_final) for first, row in zip(firsts, self._rows, strict=True)]
        for column in sorted(set().union(*news)):
            place = self._places[column - self._num_prompt]
            if config.output_scores:
                place.scores = self._collect(place.scores, scores, firsts, column)
            if config.output_logits:
                place.logits = self._collect(place.logits, logits, firsts, column)
            seen = self._places[: column - self._num_prompt + 1] if config.output_scores else []
            ended[column] = self.stopping_criteria(self.state.prefix(column + 1), tuple(p.scores for p in seen) or None)
        ended = dict(zip(ended, torch.stack(list(ended.values())).tolist(), strict=True))
        places = []
        for place, columns in enumerate(news):
            end = next((column + 1 for column in columns if ended[column][self._rows[place].index]), None)
            if end is not None:
                self._end(place, end)
                places.append(place)
        for free, moved in zip(*self.state.retire(places, self.pad_id), strict=True):
            self._rows[free] = self._rows[moved]
        del self._rows[self.state.num_live :]

    def _collect(self, kept: Tensor | None, values: Tensor, firsts: Sequence[int], column: int) -> Tensor:
        """Put what rows have at a column, of (rows, width, vocabulary), into (batch, vocabulary)."""
        kept = values.new_zeros((len(self.state.order), values.shape[-1])) if kept is None else kept
        for place, row in enumerate(self._rows):
            if firsts[place] <= column < row.num_final:
                kept[row.index] = values[place, column - firsts[place]]
        return kept

    def _end(self, place: int, length: int) -> None:
        """Let a row end at a length; tokens that were final behind it are dropped."""
        row = self._rows[place]
        for dropped in self._places[length - self._num_prompt : row.num_final - self._num_prompt]:
            dropped.is_new[row.index] = False
            dropped.depths[row.index] = dropped.drafts[row.index] = BACKBONE
            for values in (dropped.scores, dropped.logits):
                if values is not None:
                    values[row.index] = 0
        self.state.crop_row(place, length)

    def _hand_on(self) -> Generator[DecodeStep, None, None]:
        """Yield the tokens for which no row has to be waited for."""
        state = self.state
        while (number := state.length - self._num_prompt) < len(self._places) and any(self._places[number].is_new):
            if any(row.num_final <= state.length for row in self._rows):
                return
            place = self._places[number]
            state.length += 1
            yield DecodeStep(
                state.tokens[:, -1].clone(),
                torch.tensor(place.is_new, device=state.device),
                tuple(place.depths),
                tuple(place.drafts),
                place.scores,
                place.logits,
            )
            place.logits = None  # they are large

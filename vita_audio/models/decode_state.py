"""The state of decoding: tokens, how much of them each depth has read, and the slots in which that lies.

A depth reads everything it has not read yet in one causal call. Therefore cached decoding equals computing everything
again for each token, and a conversation can continue from the state in which an earlier answer ended.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache
from transformers.utils.generic import is_flash_attention_requested

from vita_audio.interleave import BACKBONE
from vita_audio.models.lean_layers import LeanLayers
from vita_audio.models.slots import Index, Slots, on_device, pad_columns, place_index, swap_items

MARGIN, GROWTH = 32, 256  # positions behind the longest answer, for rows that read on with others; at first for answers
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class MTPModel(Protocol):
    """The parts of a model that decoding uses; `config` has `num_backbone_layers` and `num_nextn_predict_layers`."""

    config: Any
    model: Any
    lm_head: nn.Module
    read_depth: Callable[..., Tensor]


class DecodeState:
    """Everything that changes while one batch is decoded; an empty one is filled by the first call it is given to.

    It belongs to one call at a time. After the call, even one that was closed or failed, it can be given to the next.
    The stream is the sequence of positions that the model reads; `tokens` are its last ids, since a prompt given as
    embeddings only comes before them.

    While a call lasts, each row has a length of its own, and rows that have ended lie behind the others, where no call
    reaches them.

    Attributes:
        length: Final positions of the stream, of prompt and answer.
        offset: Position of the first token.
        lengths: The same for each row, with drafts that are not verified yet.
        order: Row of the batch that lies in each place of the buffers and of `lengths`.
        num_live: How many of these places are still decoded.
        has_padding: Whether the prompt has any.
        slots: Keys, values and hidden states; None in an empty state.
        keeps_cache: Whether later calls of the model may use them; otherwise everything is computed again.
    """

    def __init__(self):
        self.length = 0
        self.offset = 0
        self.lengths: list[int] = []
        self.order: list[int] = []
        self.num_live = 0
        self.has_padding = False
        self.slots: Slots | None = None
        self.keeps_cache = True
        self._call: weakref.ref | None = None
        self._model: weakref.ref | None = None
        self._ids = torch.empty((0, 0), dtype=torch.int64)
        self._positions = torch.empty((0, 0), dtype=torch.int64)
        self._valid = torch.empty((0, 0), dtype=torch.bool)
        self._prompt_embeds: Tensor | None = None
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._masks: tuple[Any, dict[str, Tensor | None]] = (None, {})

    @property
    def tokens(self) -> Tensor:
        """Token ids of prompt and answer, (batch, tokens)."""
        return self.prefix(self.length)

    @property
    def cache(self) -> Slots | None:
        """The slots, as the cache of a transformers model; None without one."""
        return self.slots if self.keeps_cache else None

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self._ids.device

    @property
    def num_read(self) -> list[int]:
        """How many positions each depth has read in all rows."""
        return [min(num_read) for num_read in self.slots.num_read] if self.slots else []

    def prefix(self, end: int) -> Tensor:
        """Return the ids before a position in the order of the batch, (batch, tokens); shorter rows end in anything."""
        ids = self._ids[:, self.offset : end]
        return ids if self.order == sorted(self.order) else ids[[self.order.index(row) for row in range(len(ids))]]

    def claim(self, call: Generator) -> None:
        """Make this the state of a call until that generator has ended, has been closed or is dropped."""
        self._call = weakref.ref(call)

    def rewind(self, model: MTPModel, num_kept: int) -> int:
        """Shorten the stream to `num_kept` positions, or to none if this model cannot continue from the slots.

        Returns: How many positions the backbone does not have to read again, at most `num_kept`.
        Raises: ValueError if another call uses the state.
        """
        call = self._call and self._call()
        if call is not None and call.gi_frame is not None:
            raise ValueError("the decode_state is in use by a call that has not ended; close that one, or give another")
        if num_kept > 0 and self.cache is not None and self._model() is model:
            self.crop(num_kept)
            return self.num_read[BACKBONE]
        self.__init__()
        return 0

    def crop(self, length: int) -> None:
        """Shorten the stream; all depths keep what they have read of the rest."""
        self.length = min(self.length, length)
        for row in range(len(self.lengths)):
            self.lengths[row] = self.length
            self.slots.crop(row, self.length)

    def crop_row(self, row: int, length: int) -> None:
        """Shorten one row to tokens that stay."""
        if length < self.lengths[row]:
            self.lengths[row] = length
            self.slots.crop(row, length)

    def write(self, columns: Sequence[int], tokens: Tensor) -> None:
        """Put the next token of each live row at a position, without making the row longer."""
        if max(columns) >= self.slots.room:
            self._make_room(2 * self.slots.room)
        self._ids[place_index(columns, 1, device=self._ids.device)] = tokens[:, None]

    def ids_at(self, columns: Sequence[int], width: int) -> Tensor:
        """Return ids of the live rows from a position of each, (rows, width)."""
        return self._ids[place_index(columns, width, device=self._ids.device)]

    def retire(self, places: Sequence[int], pad_id: int) -> tuple[list[int], list[int]]:
        """End the rows in some places, which are padded from then on.

        Returns: The places before `num_live` that have become free, and those whose rows have moved there.
        """
        for place in places:
            self._ids[place, self.lengths[place] :] = pad_id
        kept = sorted(set(range(self.num_live)) - set(places))
        self.num_live = len(kept)
        free = [place for place in places if place < self.num_live]
        moved = [place for place in kept if place >= self.num_live]
        self._swap(free, moved)
        return free, moved

    def _swap(self, ones: list[int], others: list[int]) -> None:
        if not ones:
            return
        swap_items(self.order, ones, others)
        swap_items(self.lengths, ones, others)
        for buffer in (self._ids, self._positions, self._valid, *(self._rotary or ())):
            buffer[ones + others] = buffer[others + ones]
        self.slots.swap(ones, others)

    def begin(
        self, model: MTPModel, ids: Tensor, positions: Tensor, valid: Tensor, prompt_embeds: Tensor | None, room: int
    ) -> None:
        """Take a prompt and keep what has been read of the longest common prefix.

        Args:
            ids: (batch, time); without ids if the prompt is given as embeddings only.
            positions: Rotary positions, (batch, time).
            valid: False for padding, (batch, time).
            prompt_embeds: Embeddings that the backbone reads in place of the first ids, (batch, prompt, hidden). Other
                depths read them only where there are no ids.
            room: Positions to make room for.
        Raises: ValueError for a state that another call uses, or that holds other rows or those of another model.
        """
        (batch_size, length), config = positions.shape, model.config
        if self.length and self._model() is not model:
            raise ValueError("the decode_state was filled by another model; give an empty DecodeState()")
        if self.length and len(self._ids) != batch_size:
            raise ValueError(
                f"the decode_state holds {len(self._ids)} rows, got {batch_size} prompts; give an empty DecodeState()"
            )
        num_shared = self._common_prefix(ids, positions, valid)
        if not self.rewind(model, min(num_shared, length - 1)):  # the last position is read again for its logits
            num_depths = 1 + config.num_nextn_predict_layers
            self.slots = Slots(config.num_hidden_layers, num_depths, batch_size, room)
        for row in range(len(self.order)):
            if (place := self.order.index(row)) != row:
                self._swap([row], [place])
        self.slots.align()
        self._model, self.offset, self._prompt_embeds = weakref.ref(model), length - ids.shape[1], prompt_embeds
        self.order, self.lengths, self.length = list(range(batch_size)), [length] * batch_size, length
        self.num_live, self.has_padding = batch_size, not bool(valid.all())
        self._ids = F.pad(ids, (self.offset, 0))
        self._positions, self._valid = positions, valid
        self._make_room(max(room, self.slots.room))

    def _common_prefix(self, ids: Tensor, positions: Tensor, valid: Tensor) -> int:
        """Count the first positions that agree in tokens, rotary positions and padding."""
        num_shared = min(self.length, ids.shape[1])
        if not num_shared or self.offset or ids.shape != positions.shape:
            return 0
        order = torch.tensor(self.order, device=self.device)
        pairs = [(self._ids, ids), (self._positions, positions), (self._valid, valid)]
        same = [(kept[:, :num_shared] == new[order, :num_shared]).all(dim=0) for kept, new in pairs]
        return int(torch.stack(same).all(dim=0).cumprod(dim=0).sum())

    def _make_room(self, room: int) -> None:
        """Lengthen all buffers; positions of new columns follow each other."""
        new = torch.arange(1, 1 + room - self._positions.shape[1], device=self._positions.device)
        self._positions = torch.cat([self._positions, self._positions[:, -1:] + new], dim=1)
        self._ids = pad_columns(self._ids, room)
        self._valid = F.pad(self._valid, (0, room - self._valid.shape[1]), value=True)
        if room > self.slots.room:
            self.slots.grow(room)
        self._rotary, self._masks = None, (None, {})

    def read(self, model: MTPModel, depth: int, layers: LeanLayers | MTPModel) -> tuple[Tensor, list[int]]:
        """Let one depth read everything that it has not read yet and that the depth before it has, in all live rows.

        Args:
            layers: Runs the layers, see `LeanLayers.of`.
        Returns: Its hidden states, (rows, time, hidden), and the position of the first one in each row. The one of
            position c predicts the token at c + 1; those behind the end of a row mean nothing.
        """
        if not self.keeps_cache:
            for row in range(self.num_live):
                self.slots.crop(row, 0)
            for earlier in range(depth):
                self._read(model, earlier, layers)
        return self._read(model, depth, layers)

    def _read(self, model: MTPModel, depth: int, layers: LeanLayers | MTPModel) -> tuple[Tensor, list[int]]:
        slots, lengths = self.slots, self.lengths[: self.num_live]
        starts = slots.num_read[depth][: self.num_live]
        width = max(1, *(length - start for length, start in zip(lengths, starts, strict=True)))
        if max(starts) + width > slots.room:
            self._make_room(max(max(starts) + width, 2 * slots.room))
        device = self._ids.device
        index = place_index(starts, width, device=device)
        inputs_embeds = self._embed(model, depth, index, starts[0])
        slots.aim(place_index(starts, width, depth, device=device), max(starts) + width - depth)
        hidden_states = layers.read_depth(
            depth,
            inputs_embeds,
            slots.read_hidden(depth - 1, place_index(starts, width, 1, device=device)) if depth else None,
            self._positions[index],
            position_embeddings=self._position_embeddings(model, inputs_embeds, index),
            masks=self._make_masks(model.config, [start - depth for start in starts], width, inputs_embeds.dtype),
            slots=slots,
        )
        if depth < len(slots.hidden):
            slots.write_hidden(depth, index, hidden_states)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            known = length if depth == BACKBONE else slots.num_read[depth - 1][row] + 1
            slots.num_read[depth][row] = max(start, min(start + width, length, known))
        return hidden_states, starts

    def _embed(self, model: MTPModel, depth: int, index: Index, start: int) -> Tensor:
        """Embed positions as one depth reads them, (rows, time, hidden)."""
        embeds = model.model.embed_tokens(self._ids[index])
        num_given = 0
        if self._prompt_embeds is not None:  # rows do not differ before the end of a prompt
            num_given = (self._prompt_embeds.shape[1] if depth == BACKBONE else self.offset) - start
        if num_given <= 0:
            return embeds
        given = self._prompt_embeds[self.order[: self.num_live], start : start + min(num_given, embeds.shape[1])]
        return torch.cat([given.to(embeds), embeds[:, given.shape[1] :]], dim=1)

    def _position_embeddings(self, model: MTPModel, inputs_embeds: Tensor, index: Index) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of positions, (rows, time, size), from tables that are made once for a call."""
        rotary = model.model.rotary_emb
        if rotary.rope_type in LENGTH_DEPENDENT_ROPE:
            return rotary(inputs_embeds, self._positions[index])
        if self._rotary is None:
            self._rotary = rotary(inputs_embeds, self._positions)
        return tuple(table[on_device(index, table.device)] for table in self._rotary)

    def _make_masks(self, config: Any, slots: list[int], width: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """Make the mask of every attention type, for queries in `width` slots of each row.

        The depths of a cycle read the same slots one after another, so the latest masks are kept.
        """
        if self._masks[0] != (slots, width):
            self._masks = (slots, width), self._new_masks(config, slots, width, dtype)
        return self._masks[1]

    def _new_masks(self, config: Any, slots: list[int], width: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """Mask the slots after a query's own, those of padding and, with a sliding window, those before it."""
        num_used, kinds, implementation = max(slots) + width, set(config.layer_types), config._attn_implementation
        valid = self._valid[: self.num_live, :num_used] if self.has_padding else None
        if is_flash_attention_requested(config):
            return dict.fromkeys(kinds, valid)  # its kernels know order and window
        is_causal = valid is None and (width == 1 or slots == [0] * len(slots)) and min(slots) == max(slots)
        if is_causal and implementation == "sdpa" and kinds == {"full_attention"}:
            return {"full_attention": None}
        if valid is None and min(slots) == max(slots):
            slots = slots[:1]  # one mask for all rows
        keys = torch.arange(num_used, device=self._ids.device)
        queries = torch.tensor(slots, device=keys.device)[:, None] + keys[:width]
        visible = keys <= queries[..., None]  # (rows, time, slots)
        if valid is not None:
            visible = visible & valid[:, None] | (keys == queries[..., None])  # padding attends to itself
        # sdpa would turn a bool mask into this one again in each layer
        hidden = -torch.inf if implementation == "sdpa" else torch.finfo(dtype).min
        masks = {}
        for kind in kinds:
            seen = visible
            if kind != "full_attention":
                seen = visible & (keys > queries[..., None] - config.sliding_window)
            masks[kind] = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, hidden)[:, None]
        return masks


def begin_decoding(
    model: MTPModel,
    input_ids: Tensor,
    state: DecodeState,
    *,
    position_ids: Tensor,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    max_length: int | None = None,
    use_cache: bool | None = None,
    logits_to_keep: int | None = None,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
) -> None:
    """Give a state the prompt that transformers has prepared.

    Args:
        input_ids: The whole prompt, (batch, time); without ids if it is given as `inputs_embeds` only.
        state: State of an earlier call, or an empty one.
        position_ids: Positions of the prompt, (batch or 1, time).
        attention_mask: Mask of the prompt, (batch, time), 0 for padding.
        inputs_embeds: Embeddings of the whole prompt, (batch, time, hidden). Those of the kept prefix are not compared.
        past_key_values: Any empty cache, in place of which the state's slots are used; None to decode without a cache.
        max_length: Most tokens of prompt and answer together; None: unknown.
        use_cache, logits_to_keep: No effect; transformers passes them to every decoding function.
        output_attentions, output_hidden_states: Not available.
    Raises: ValueError for a prompt without tokens, for ids, embeddings and cache that do not fit together, and for a
        state that belongs to something else.
    """
    if output_attentions or output_hidden_states:
        name = "output_attentions" if output_attentions else "output_hidden_states"
        raise ValueError(f"{name} is not available with MTP modules; give mtp_inference_mode='vanilla'")
    (batch_size, num_ids), length = input_ids.shape, position_ids.shape[1]
    if not length:
        raise ValueError("a prompt must have at least one token, got none; begin with a start token")
    if inputs_embeds is not None and num_ids not in (0, inputs_embeds.shape[1]):
        num_given = inputs_embeds.shape[1]
        raise ValueError(f"input_ids and inputs_embeds must be equally long, got {num_ids} and {num_given} tokens")
    if past_key_values is not None and (num_cached := int(past_key_values.get_seq_length())):
        raise ValueError(
            f"past_key_values must be empty, got {num_cached} tokens; to continue, give the decode_state of the "
            "earlier call and all input_ids"
        )
    positions = position_ids.expand(batch_size, -1)
    valid = torch.ones_like(positions) if attention_mask is None else attention_mask
    num_new = GROWTH if max_length is None else min(GROWTH, max_length - num_ids)  # most answers are much shorter
    state.begin(model, input_ids, positions, valid != 0, inputs_embeds, length + num_new + MARGIN)
    state.keeps_cache = past_key_values is not None

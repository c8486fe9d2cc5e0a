"""Reading by rows of different lengths: keys, values and hidden states lie in slots, one for each position of a row.

Column c of the stream is the same slot for all rows, so a rejected token costs nothing: its slots are written again
before anything may attend to them. Rows that read fewer positions than others in a call read on into slots that are
not in use yet.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.generic import is_flash_attention_requested

from vita_audio.interleave import BACKBONE
from vita_audio.models.decode_state import DecodeState, MTPModel

GROWTH = 256  # slots are added in steps of this size


def _with_room(values: Tensor, size: int, dim: int) -> Tensor:
    """Return `values`, made longer with zeros along a dimension if it is shorter than `size`."""
    missing = size - values.shape[dim]
    if missing <= 0:
        return values
    return F.pad(values, (0, 0) * (values.ndim - 1 - dim % values.ndim) + (0, missing + GROWTH))


class SlotCache:
    """Keys and values of all layers, (batch, heads, slots, size); has the methods of a cache that layers call.

    Attributes:
        slots: Where the next call writes, (batch, time).
        num_used: Slots that the layers get to see.
    """

    def __init__(self, num_layers: int):
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self.slots: Tensor | None = None
        self.num_used = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write keys and values, (batch, heads, time, size), and return those of all slots in use."""
        stored = self.layers[layer_idx] or (key_states[:, :, :0], value_states[:, :, :0])
        slots = self.slots.to(key_states.device)[:, None, :, None]
        pairs = zip(stored, (key_states, value_states), strict=True)
        keys, values = (_with_room(old, self.num_used, 2).scatter_(2, slots.expand_as(new), new) for old, new in pairs)
        self.layers[layer_idx] = keys, values
        return keys[:, :, : self.num_used], values[:, :, : self.num_used]


class SlotReader:
    """The rows of a batch while they are decoded, each with a length of its own.

    Depth d reads column c of a row, which is the token there and the hidden state of depth d - 1 one column before, and
    predicts column c + 1. The first d columns need no reading and count as read, so column c is in slot c - d.

    Attributes:
        tokens: Token ids, (batch, room); a row's tokens end at its length.
        lengths: Positions of each row, read or not.
        num_read: num_read[d][row]: how many positions depth d has read.
    """

    def __init__(self, model: MTPModel, state: DecodeState):
        """Take over a state that `begin_decoding` has prepared.

        Raises: ValueError for an attention implementation that cannot leave out slots.
        """
        batch_size, self.num_prompt = len(state.tokens), state.length
        self._model, self._is_flash = model, is_flash_attention_requested(model.config)
        self._valid = None if state.attention_mask is None else state.attention_mask != 0
        self._is_plain = batch_size == 1 and (self._valid is None or bool(self._valid.all()))
        if self._is_flash and not self._is_plain:
            raise ValueError(
                f"acceptance above 0 with flash attention works for one row without padding, got {batch_size} rows; "
                'load the model with attn_implementation="sdpa"'
            )
        self.offset = state.length - state.tokens.shape[1]  # column of the first token
        self.tokens = _with_room(state.tokens, state.tokens.shape[1] + 1, 1)
        self._prompt_embeds = state.prompt_embeds
        self._positions = state.position_ids.expand(batch_size, -1)
        self.lengths = [state.length] * batch_size
        self.num_read = [[number] * batch_size for number in state.num_read]
        self._hidden: list[Tensor | None] = [None] * len(state.num_read)
        self._cache = SlotCache(model.config.num_hidden_layers)
        if state.cache is not None:
            self._take_over(state)

    def _take_over(self, state: DecodeState) -> None:
        """Copy what an earlier call has read."""
        for number, layer in enumerate(state.cache.layers):
            if layer.get_seq_length():
                self._cache.layers[number] = layer.keys.clone(), layer.values.clone()
        for depth in range(1, len(state.num_read)):
            start = state.num_read[depth] - 1
            self._hidden[depth - 1] = F.pad(state.pending[depth], (0, 0, start, 0))

    def append(self, row: int, token: Tensor) -> None:
        """Add a token to a row."""
        place = self.lengths[row] - self.offset
        self.tokens = _with_room(self.tokens, place + 1, 1)
        self.tokens[row, place] = token
        self.lengths[row] += 1

    def crop(self, row: int, length: int) -> None:
        """Shorten a row. All depths count as having read no more than it has, and nothing needs reading again."""
        self.lengths[row] = length
        for depth, num_read in enumerate(self.num_read):
            num_read[row] = max(depth, min(num_read[row], length))

    def prefix(self, length: int) -> Tensor:
        """Return the tokens before a position, (batch, tokens), which mean nothing behind the end of shorter rows."""
        return self.tokens[:, : length - self.offset]

    def read(self, depth: int) -> tuple[Tensor, list[int]]:
        """Let one depth read everything that it has not read yet and that the depth before it has.

        Returns: Its hidden states, (batch, time, hidden), and the column of the first one in each row.
        """
        model, starts, device = self._model, list(self.num_read[depth]), self.tokens.device
        width = max(1, max(length - start for length, start in zip(self.lengths, starts, strict=True)))
        columns = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)  # (batch, time)
        inputs_embeds, position_ids = self._embed(depth, columns), self._position_ids(columns)
        self._cache.slots, self._cache.num_used = columns - depth, max(starts) + width - depth
        masks = self._masks(self._cache.slots, inputs_embeds)
        if depth == BACKBONE:
            hidden_states = model.model(
                inputs_embeds=inputs_embeds,
                attention_mask=masks,
                position_ids=position_ids,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        else:
            earlier = self._at(_with_room(self._hidden[depth - 1], max(starts) + width, 1), columns - 1)
            hidden_states = model.mtp_step(
                depth, inputs_embeds, earlier, position_ids, past_key_values=self._cache, masks=masks
            )
        if depth + 1 < len(self.num_read):
            old = self._hidden[depth]
            old = hidden_states[:, :0] if old is None else old.to(hidden_states)
            index = columns.to(hidden_states.device)[..., None].expand_as(hidden_states)
            self._hidden[depth] = _with_room(old, max(starts) + width, 1).scatter_(1, index, hidden_states)
        for row, start in enumerate(starts):
            known = self.lengths[row] if depth == BACKBONE else self.num_read[depth - 1][row] + 1
            self.num_read[depth][row] = max(start, min(start + width, self.lengths[row], known))
        return hidden_states, starts

    def store(self, state: DecodeState) -> None:
        """Put the first columns, which all rows have read, into a state whose tokens are complete already."""
        limit = state.length
        for depth, num_read in enumerate(self.num_read):
            state.num_read[depth] = limit = max(depth, min(limit, *num_read))
            if depth + 1 < len(self.num_read):
                limit = min(state.length, limit + 1)
        for depth in range(1, len(self.num_read)):
            hidden = self._hidden[depth - 1]
            if hidden is not None:
                state.pending[depth] = hidden[:, state.num_read[depth] - 1 : state.num_read[depth - 1]].clone()
        if state.cache is None:
            state.forget()
            return
        for number, stored in enumerate(self._cache.layers):
            depth = max(0, number + 1 - state.num_backbone_layers)
            known = state.cache.get_seq_length(number) if number < len(state.cache.layers) else 0
            new = slice(known, state.num_read[depth] - depth)
            if stored is not None and new.start < new.stop:
                state.cache.update(stored[0][:, :, new], stored[1][:, :, new], number)

    @staticmethod
    def _at(values: Tensor, columns: Tensor) -> Tensor:
        """Gather values, (batch, columns, hidden), at the columns of each row, (batch, time)."""
        columns = columns.to(values.device)[..., None]
        return values.gather(1, columns.expand(-1, -1, values.shape[-1]))

    def _embed(self, depth: int, columns: Tensor) -> Tensor:
        """Embed the columns as one depth reads them; see `DecodeState.embed`."""
        places = (columns - self.offset).clamp(0, self.tokens.shape[1] - 1)
        token_embeds = self._model.get_input_embeddings()(self.tokens.gather(1, places))
        if self._prompt_embeds is None or (depth != BACKBONE and self.offset == 0):
            return token_embeds
        num_given = self._prompt_embeds.shape[1]
        given = self._at(self._prompt_embeds, columns.clamp(max=num_given - 1)).to(token_embeds)
        is_given = (columns < num_given)[..., None].to(token_embeds.device)
        return torch.where(is_given, given, token_embeds)

    def _position_ids(self, columns: Tensor) -> Tensor:
        last = self._positions.shape[1] - 1
        return self._positions.gather(1, columns.clamp(max=last)) + (columns - last).clamp(min=0)

    def _masks(self, slots: Tensor, inputs_embeds: Tensor) -> dict[str, Tensor | None]:
        """Mask the slots after a query's own, those of padding and, with a sliding window, those before it."""
        config, num_used = self._model.config, self._cache.num_used
        kinds = set(config.layer_types)
        if self._is_plain and (self._is_flash or slots.shape[1] == 1) and kinds == {"full_attention"}:
            return {"full_attention": None}
        keys = torch.arange(num_used, device=slots.device)
        visible = keys <= slots[..., None]  # (batch, time, slots)
        if self._valid is not None:
            valid = self._valid[:, :num_used]
            valid = F.pad(valid, (0, num_used - valid.shape[1]), value=True)
            visible = visible & valid[:, None] | (keys == slots[..., None])  # padding attends to itself
        masks = {}
        for kind in kinds:
            mask = (
                visible & (keys > slots[..., None] - config.sliding_window) if kind == "sliding_attention" else visible
            )
            masks[kind] = mask[:, None]
            if config._attn_implementation == "eager":
                lowest = torch.finfo(inputs_embeds.dtype).min
                masks[kind] = torch.zeros_like(mask[:, None], dtype=inputs_embeds.dtype).masked_fill(
                    ~mask[:, None], lowest
                )
        return masks

"""Where decoding keeps keys, values and hidden states: one slot for each position, written in place.

Depth d reads position c of a row with the hidden state of depth d - 1 at c - 1, and keeps its key and value in slot
c - d. A position that is read again, after a rejection or in another turn, overwrites its slot, so going back costs
nothing. Rows that read fewer positions than others in a call read on into slots that are not in use yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Index = tuple[slice, slice] | tuple[Tensor, Tensor]


def place_index(starts: Sequence[int], width: int, shift: int = 0, device: torch.device | None = None) -> Index:
    """Index `width` columns of (rows, columns, ...) from a start in each row, moved to the left by `shift`.

    Returns: Slices, which neither copy nor wait, if all rows start alike; otherwise tensors that broadcast.
    """
    if min(starts) == max(starts):
        return slice(0, len(starts)), slice(starts[0] - shift, starts[0] - shift + width)
    columns = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device) - shift
    return torch.arange(len(starts), device=device)[:, None], columns


def on_device(index: Index, device: torch.device) -> Index:
    """Move the tensors of an index."""
    return index if isinstance(index[0], slice) else (index[0].to(device), index[1].to(device))


def pad_columns(values: Tensor, num_columns: int) -> Tensor:
    """Append zeros to the columns of (rows, columns, ...)."""
    return F.pad(values, (0, 0) * (values.ndim - 2) + (0, num_columns - values.shape[1]))


def swap_items(values: list, ones: Sequence[int], others: Sequence[int]) -> None:
    """Let pairs of items change places."""
    for one, other in zip(ones, others, strict=True):
        values[one], values[other] = values[other], values[one]


class Slots:
    """Keys and values of all layers and hidden states of all depths; has the methods of a cache that layers call.

    Attributes:
        keys, values: Of each layer, (rows, room, heads, size); None before the layer has read anything.
        hidden: Of each depth but the last, (rows, room, hidden), by position.
        num_read: num_read[d][row]: how many positions depth d has read. Nothing precedes the first d positions that it
            could read with them, so they count as read.
    """

    def __init__(self, num_layers: int, num_depths: int, num_rows: int, room: int):
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.hidden: list[Tensor | None] = [None] * (num_depths - 1)
        self.num_read = [[depth] * num_rows for depth in range(num_depths)]
        self.room = room
        self._index: Index = (slice(0), slice(0))
        self._num_used = 0

    def aim(self, index: Index, num_used: int) -> None:
        """Say where the next layers write, and how many slots they see."""
        self._index, self._num_used = index, num_used

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values, (rows, time, heads, size), and return those of all slots that are seen."""
        if self.keys[layer] is None:
            shape = (len(self.num_read[0]), self.room, *keys.shape[2:])
            # zeros, since a slot that is hidden by a mask must still hold numbers
            self.keys[layer], self.values[layer] = keys.new_zeros(shape), values.new_zeros(shape)
        index = on_device(self._index, keys.device)
        self.keys[layer][index], self.values[layer][index] = keys, values
        seen = slice(0, len(keys)), slice(0, self._num_used)
        return self.keys[layer][seen], self.values[layer][seen]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_) -> tuple[Tensor, Tensor]:
        """Do the same for layers of transformers, (rows, heads, time, size)."""
        keys, values = self.write(layer_idx, key_states.transpose(1, 2), value_states.transpose(1, 2))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of slots of a layer that every row uses."""
        depth = max(0, layer_idx % len(self.keys) + len(self.num_read) - len(self.keys))
        return min(self.num_read[depth]) - depth

    def write_hidden(self, depth: int, index: Index, hidden_states: Tensor) -> None:
        """Keep the hidden states of a depth, (rows, time, hidden), at positions."""
        if self.hidden[depth] is None:
            shape = (len(self.num_read[0]), self.room, hidden_states.shape[-1])
            self.hidden[depth] = hidden_states.new_zeros(shape)
        self.hidden[depth][on_device(index, hidden_states.device)] = hidden_states

    def read_hidden(self, depth: int, index: Index) -> Tensor:
        return self.hidden[depth][on_device(index, self.hidden[depth].device)]

    def grow(self, room: int) -> None:
        """Make room for more positions."""
        for buffers in (self.keys, self.values, self.hidden):
            buffers[:] = [None if buffer is None else pad_columns(buffer, room) for buffer in buffers]
        self.room = room

    def crop(self, row: int, length: int) -> None:
        """Forget the positions of a row from `length` on; what remains need not be read again."""
        for depth, num_read in enumerate(self.num_read):
            num_read[row] = max(depth, min(num_read[row], length))

    def align(self) -> None:
        """Let every depth have read as much in all rows as in the one where it has read least."""
        self.num_read = [[min(num_read)] * len(num_read) for num_read in self.num_read]

    def swap(self, ones: list[int], others: list[int]) -> None:
        """Let pairs of rows change places."""
        num_used = max(map(max, self.num_read))
        for buffer in (*self.keys, *self.values, *self.hidden):
            if buffer is not None:
                buffer[ones + others, :num_used] = buffer[others + ones, :num_used]
        for num_read in self.num_read:
            swap_items(num_read, ones, others)

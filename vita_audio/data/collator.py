"""From packs to a batch.

transformers keeps the documents of a row apart in every attention back end when `position_ids` restart, no
`attention_mask` is given and `use_cache` is false; with an all-ones mask it silently lets them see each other. So a
batch never has a mask, and padding is a document of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vita_audio.constants import IGNORE_INDEX

_COLUMNS = {"input_ids": torch.int64, "labels": torch.int64, "position_ids": torch.int64, "loss_weights": torch.float32}


@dataclass(frozen=True)
class PackCollator:
    """Stacks packs, padded on the right to the longest of the batch.

    Attributes:
        pad_id: Token id of the padding.
    """

    pad_id: int

    def __call__(self, packs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `labels`, `position_ids` (batch, time), int64, and `loss_weights`, float32, if given.

        Raises: ValueError if a pack has an `attention_mask` or the packs differ in their columns.
        """
        names = set(packs[0])
        if any(set(pack) != names for pack in packs):
            raise ValueError(f"packs of a batch must have the same columns, got {[sorted(pack) for pack in packs]}")
        if "attention_mask" in names:
            raise ValueError("packs must not carry an attention_mask: with one, their documents see each other")
        length = max(len(pack["input_ids"]) for pack in packs)
        return {name: self._stack(packs, name, length) for name in _COLUMNS if name in names}

    def _stack(self, packs: Sequence[Mapping[str, Any]], name: str, length: int) -> Tensor:
        fill = {"input_ids": self.pad_id, "labels": IGNORE_INDEX}.get(name, 0)
        batch = torch.full((len(packs), length), fill, dtype=_COLUMNS[name])  # (batch, time)
        for row, pack in zip(batch, packs, strict=True):
            values = torch.tensor(pack[name])
            row[: len(values)] = values
            if name == "position_ids":
                row[len(values) :] = torch.arange(length - len(values))
        return batch

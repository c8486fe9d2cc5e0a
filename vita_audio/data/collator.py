"""Collate packs into a batch.

transformers separates the documents of a row in every attention back end if `position_ids` restart, no `attention_mask`
is given and `use_cache` is false; with a mask of ones it lets them attend to each other. A batch therefore never has a
mask, and padding is a document of its own. Audio of continuous input is read here, in the data loader's processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.audio import AudioError, load_audio
from vita_audio.speech_features import QUERIES, SenseVoiceFrontEnd

_AUDIO_COLUMNS = ("audio_paths", "audio_starts", "audio_rows")
_COLUMNS = {"input_ids": torch.int64, "labels": torch.int64, "position_ids": torch.int64, "loss_weights": torch.float32}


@dataclass(frozen=True)
class PackCollator:
    """Stacks packs, padded on the right to the longest of the batch.

    Attributes:
        front_end: Computes the features of continuous input.
        files: Data files that `sources` of the packs refer to; with them, batches name their samples.
    """

    pad_id: int
    front_end: SenseVoiceFrontEnd | None = None
    files: Sequence[str] = ()

    def __call__(self, packs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `labels`, `position_ids` (batch, time), int64, and `loss_weights`, float32, if given.

        Packs with continuous input also give `audios` and `audio_indices`, arguments of the Plus models. `samples`, if
        given, are file and line of each document, for messages.

        Raises: ValueError for an `attention_mask`; FileNotFoundError or AudioError for audio that has changed since the
            packs were made.
        """
        names = set(packs[0])
        if "attention_mask" in names:
            raise ValueError("packs must not have an attention_mask: with one, documents attend to each other")
        length = max(len(pack["input_ids"]) for pack in packs)
        batch: dict[str, Any] = {name: self._stack(packs, name, length) for name in _COLUMNS if name in names}
        if self.files and "sources" in names:
            batch["samples"] = [
                f"{self.files[source]}:{line}"
                for pack in packs
                for source, line in zip(pack["sources"], pack["lines"], strict=True)
            ]
        if "audio_paths" in names:
            batch["audios"], batch["audio_indices"] = [], []
            for row, pack in enumerate(packs):
                for path, start, num_rows in zip(*(pack[name] for name in _AUDIO_COLUMNS), strict=True):
                    places = torch.arange(int(start), int(start) + int(num_rows))
                    batch["audios"].append(self._features(str(path), int(num_rows)))
                    batch["audio_indices"].append(torch.stack([torch.full_like(places, row), places])[:, None])
        return batch

    def _features(self, path: str, num_rows: int) -> Tensor:
        """Return the features of an audio file with `num_rows` placeholders, (rows, 560)."""
        if self.front_end is None:
            raise ValueError("these packs have continuous input; give the collator a front_end")
        features = self.front_end(load_audio(path, self.front_end.sample_rate, channel="mean"))
        if len(features) + len(QUERIES) != num_rows:
            raise AudioError(
                f"{path} has changed since it was packed: {len(features)} rows of features, expected "
                f"{num_rows - len(QUERIES)}; delete the folder of packs"
            )
        return features

    def _stack(self, packs: Sequence[Mapping[str, Any]], name: str, length: int) -> Tensor:
        fill = {"input_ids": self.pad_id, "labels": IGNORE_INDEX}.get(name, 0)
        batch = torch.full((len(packs), length), fill, dtype=_COLUMNS[name])  # (batch, time)
        for row, pack in zip(batch, packs, strict=True):
            values = torch.tensor(pack[name])
            row[: len(values)] = values
            if name == "position_ids":
                row[len(values) :] = torch.arange(length - len(values))
        return batch

"""Paraformer for Chinese, with funasr, as Seed-TTS has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from evaluation.judges.base import Judge
from vita_audio.constants import INPUT_RATE
from vita_audio.optional import require


class ParaformerJudge(Judge):
    """A Paraformer model, one clip at a time."""

    sample_rate = INPUT_RATE
    language = "zh"

    def __init__(self, model: str, name: str):
        """Load the model.

        Args:
            model: A folder, or a name that funasr knows such as "paraformer-zh".
        Raises: MissingPackageError, an ImportError, without funasr.
        """
        funasr = require("funasr", purpose=f"the judge {name}", install="funasr")
        self.name = name
        self._model = funasr.AutoModel(model=model, disable_update=True, disable_pbar=True)

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        for wave in waves:
            (result,) = self._model.generate(input=wave, fs=self.sample_rate, batch_size_s=300)
            yield result["text"]

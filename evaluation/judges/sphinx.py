"""PocketSphinx, whose small English model is part of the package: a judge where nothing may be downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from evaluation.judges.base import Judge
from vita_audio.constants import INPUT_RATE
from vita_audio.optional import require


class SphinxJudge(Judge):
    """The English model of PocketSphinx; errs often, and in other words than Whisper does."""

    name = "pocketsphinx"
    sample_rate = INPUT_RATE

    def __init__(self, num_threads: int | None = None):
        """Load the model; it always has one thread.

        Raises: MissingPackageError, an ImportError, without pocketsphinx.
        """
        package = require("pocketsphinx", purpose=f"the judge {self.name}", install=self.name)
        # The mean of each clip's own features; the usual one goes on from clip to clip, and their order would count.
        self._decoder = package.Decoder(samprate=self.sample_rate, cmn="batch", loglevel="FATAL")

    def _transcribe_all(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        for wave in waves:
            samples = (wave.clip(-1, 1) * np.iinfo(np.int16).max).astype(np.int16)
            self._decoder.start_utt()
            self._decoder.process_raw(samples.tobytes(), full_utt=True)
            self._decoder.end_utt()
            hypothesis = self._decoder.hyp()
            yield hypothesis.hypstr if hypothesis else ""

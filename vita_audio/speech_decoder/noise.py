"""Random numbers addressed by frame, so that chunks of a stream see what one whole run sees."""

import torch
from torch import Tensor


class FrameNoise:
    """Standard normal noise, a fixed number of values per frame.

    Values depend on the seed and on the frame alone: on no device, chunk size or other stream.

    Args:
        size: Values per frame; a multiple of 16, because torch draws normal numbers in groups of 16.
        generator: CPU generator, used by nothing else. None: there is no noise beyond `rows`.
        rows: Noise of the first frames, (frames, size), if it was drawn already.
    """

    def __init__(self, size: int, generator: torch.Generator | None, rows: Tensor | None = None):
        if size % 16:
            raise ValueError(f"the number of values per frame must be a multiple of 16, got {size}")
        self.generator = generator
        self.first_frame = 0
        self.rows = torch.empty(0, size) if rows is None else rows

    def read(self, start: int, stop: int) -> Tensor:
        """Noise of the frames from `start` to `stop`, (stop - start, size); frames before `start` are forgotten."""
        if start < self.first_frame:
            raise ValueError(f"noise before frame {self.first_frame} is gone, asked for frame {start}")
        missing = stop - self.first_frame - len(self.rows)
        if missing > 0:
            if self.generator is None:
                raise ValueError(f"noise was drawn for {stop - missing} frames, asked for {stop}")
            drawn = torch.randn(missing, self.rows.shape[1], generator=self.generator)
            self.rows = torch.cat([self.rows, drawn])
        self.rows = self.rows[start - self.first_frame :]
        self.first_frame = start
        return self.rows[: stop - start]

"""Random numbers addressed by frame, so that the chunks of a stream use the same numbers as whole decoding."""

import torch
from torch import Tensor


class FrameNoise:
    """Standard normal noise, a fixed number of values per frame.

    Values depend only on the seed and the frame, not on device, chunk size or other streams.
    """

    def __init__(self, size: int, generator: torch.Generator | None, rows: Tensor | None = None):
        """Begin at frame 0.

        Args:
            size: Values per frame; a multiple of 16, because torch draws normal numbers in groups of 16.
            generator: CPU generator that nothing else uses. None: there is no noise beyond `rows`.
            rows: Noise of the first frames, (frames, size), if it has been drawn already.
        """
        if size % 16:
            raise ValueError(f"the number of values per frame must be a multiple of 16, got {size}")
        self.generator = generator
        self.first_frame = 0
        self.rows = torch.empty(0, size) if rows is None else rows

    def read(self, start: int, stop: int) -> Tensor:
        """Return the noise of frames `start` to `stop`, (stop - start, size), and forget the frames before `start`.

        Raises: ValueError for frames that were forgotten or that have no noise.
        """
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

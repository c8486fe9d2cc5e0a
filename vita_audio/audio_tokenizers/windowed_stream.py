"""Streaming for decoders that look only so far around a code: chunks are exactly pieces of the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio.speech_decoder.inputs import check_codes

from .base import AudioStream


@dataclass(frozen=True)
class WindowedDecoder:
    """What a stream must know of a decoder.

    Args:
        decode: Codes of some groups and the number of the first of them, 0, 1, ... -> their wave, (samples,). Called
            with numbers that never decrease; the last group may be incomplete.
        vocab_size: Codes are 0..vocab_size - 1.
        codes_per_group, samples_per_group: Of one group.
        context_groups: Groups on either side beyond which nothing changes a sample.
    """

    decode: Callable[[list[int], int], Tensor]
    vocab_size: int
    codes_per_group: int
    samples_per_group: int
    context_groups: int


class WindowedStream(AudioStream):
    """Decodes groups of codes as soon as those behind them, as far as they are heard, are there too."""

    def __init__(self, decoder: WindowedDecoder, chunk_sizes: Sequence[int]):
        """`chunk_sizes`: codes of the first chunk, the second, ..., rounded up to groups; the last size repeats."""
        self._decoder = decoder
        self._sizes = [-(-size // decoder.codes_per_group) for size in chunk_sizes]
        self._codes: list[int] = []  # of the groups from `_first` on
        self._first = 0
        self._done = 0  # groups that became samples
        self._is_finished = False

    def push(self, codes: Sequence[int]) -> Tensor:
        if self._is_finished:
            raise ValueError("this stream was flushed; begin another one with stream()")
        self._codes += check_codes(codes, self._decoder.vocab_size)
        waves = [torch.zeros(0)]
        while self._done + self._sizes[0] + self._decoder.context_groups <= self._num_groups:
            waves.append(self._decode_until(self._done + self._sizes[0]))
            self._sizes = self._sizes[1:] or self._sizes
        return torch.cat(waves)

    def flush(self) -> Tensor:
        self._is_finished = True
        return self._decode_until(self._num_groups)

    @property
    def _num_groups(self) -> int:
        """Groups so far; once the stream is finished an incomplete one counts."""
        size = self._decoder.codes_per_group
        return self._first + (len(self._codes) + (size - 1 if self._is_finished else 0)) // size

    def _decode_until(self, stop: int) -> Tensor:
        if stop == self._done:
            return torch.zeros(0)
        decoder, first = self._decoder, self._first
        end = min(stop + decoder.context_groups, self._num_groups)
        wave = decoder.decode(self._codes[: (end - first) * decoder.codes_per_group], first)
        wave = wave[(self._done - first) * decoder.samples_per_group : (stop - first) * decoder.samples_per_group]
        self._done, self._first = stop, max(first, stop - decoder.context_groups)
        self._codes = self._codes[(self._first - first) * decoder.codes_per_group :]
        return wave

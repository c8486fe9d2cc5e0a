"""Streaming for decoders with a bounded receptive field, whose chunks are exact pieces of the whole wave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio.speech_decoder.inputs import check_codes

from .base import AudioStream


@dataclass(frozen=True)
class WindowedDecoder:
    """The properties of a decoder that a stream needs.

    Attributes:
        decode: Function of the codes of consecutive groups and the index of the first group that returns their wave,
            (samples,). Indices never decrease from call to call; the last group may be incomplete.
        vocab_size: Codes are 0..vocab_size - 1.
        context_groups: Number of groups on either side that may influence a sample.
    """

    decode: Callable[[list[int], int], Tensor]
    vocab_size: int
    codes_per_group: int
    samples_per_group: int
    context_groups: int


class WindowedStream(AudioStream):
    """Decodes groups of codes as soon as the groups after them that influence their samples have arrived."""

    def __init__(self, decoder: WindowedDecoder, chunk_sizes: Sequence[int]):
        """Begin a stream.

        Args:
            chunk_sizes: Codes in the first, second, ... chunk, rounded up to groups; the last size repeats.
        """
        self._decoder = decoder
        self._sizes = [-(-size // decoder.codes_per_group) for size in chunk_sizes]
        self._codes: list[int] = []  # codes of the groups from `_first` on
        self._first = 0
        self._done = 0  # groups whose samples were returned
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
        """Number of groups so far; once the stream is finished, an incomplete group counts."""
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

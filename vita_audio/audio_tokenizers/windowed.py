"""Codecs whose decoder has a bounded receptive field, so that chunks are exact pieces of the whole wave."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from vita_audio.stopwatch import Stopwatch

from .base import AudioStream, AudioTokenizer, Voice


class WindowedTokenizer(AudioTokenizer):
    """Decodes each chunk once the groups of codes that influence its samples have arrived.

    Attributes:
        stream_chunks: Codes in the first, second, ... chunk of a stream, rounded up to groups; the last size repeats.
        codes_per_piece: Number of codes that `decode` decodes at a time.
        samples_per_group: Number of samples that a group of codes stands for.
        context_groups: Upper bound of the number of groups on either side that influence a sample.
    """

    stream_chunks: Sequence[int]
    codes_per_piece: int
    samples_per_group: int
    context_groups: int

    @abstractmethod
    def _window_decoder(self, voice: Voice | None) -> Callable[[list[int], int], Tensor]:
        """Return a function of the codes of consecutive groups and the index of the first that returns their wave.

        The wave is (samples,). Indices never decrease from call to call; the last group may be incomplete.
        """

    def _stream(self, voice: Voice | None, stopwatch: Stopwatch) -> AudioStream:
        return self._chunked_stream(voice, self.stream_chunks, stopwatch)

    def _decode(self, codes: list[int], voice: Voice | None) -> Tensor:
        stream = self._chunked_stream(voice, [self.codes_per_piece], Stopwatch())
        return torch.cat([stream.push(codes), stream.flush()])

    def _chunked_stream(self, voice: Voice | None, chunk_sizes: Sequence[int], stopwatch: Stopwatch) -> AudioStream:
        decode, size, samples = self._window_decoder(voice), self.codes_per_group, self.samples_per_group
        context = self.context_groups
        window: list[int] = []  # codes of the groups from `first` on
        first = done = 0  # groups before `done` have become samples

        def decode_chunk(codes: list[int], final: bool) -> Tensor:
            nonlocal first, done
            window.extend(codes)
            num_groups = first + -(-len(window) // size)
            stop = num_groups if final else num_groups - context
            if stop == done:
                return torch.zeros(0)
            with stopwatch.measure("vocoder"):
                wave = decode(window, first)[(done - first) * samples : (stop - first) * samples]
            kept = max(first, stop - context)
            del window[: (kept - first) * size]
            first, done = kept, stop
            return wave

        sizes = [-(-chunk_size // size) * size for chunk_size in chunk_sizes]
        return AudioStream(decode_chunk, self.vocab_size, [sizes[0] + context * size, *(sizes[1:] or sizes)])


def reach(layers: Iterable[nn.Module]) -> float:
    """Return an upper bound of the steps on either side that convolutions in sequence depend on; others are ignored.

    Args:
        layers: From the coarsest rate, whose steps are counted, to the finest: a decoder's in order, an encoder's in
            reverse.
    """
    total, rate = 0.0, 1
    for layer in layers:
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            total += (layer.dilation[0] * (kernel - 1) / 2 if stride == 1 else kernel / stride) / rate
            rate *= stride
    return total

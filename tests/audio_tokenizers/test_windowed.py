"""Streams of a decoder in which the two groups on either side influence each group."""

import pytest
import torch

from vita_audio.audio_tokenizers.windowed import WindowedTokenizer

CONTEXT, SAMPLES, GROUP = 2, 3, 4


def decode(codes, first):
    """Each sample is the sum of the first codes of its group and of the groups around it, plus the group's number."""
    groups = torch.tensor([float(code) for code in codes[::GROUP]])
    padded = torch.nn.functional.pad(groups, (CONTEXT, CONTEXT))
    sums = padded.unfold(0, 2 * CONTEXT + 1, 1).sum(1) + torch.arange(first, first + len(groups))
    return sums.repeat_interleave(SAMPLES)


class Toy(WindowedTokenizer):
    vocab_size, codes_per_group, samples_per_group, context_groups = 100, GROUP, SAMPLES, CONTEXT
    codes_per_piece = 4 * GROUP
    _load = _encode = fingerprint = None

    def __init__(self, stream_chunks):
        self.stream_chunks, self.windows = stream_chunks, []

    def _window_decoder(self, voice):
        def record(codes, first):
            self.windows.append(len(codes))
            return decode(codes, first)

        return record


CODES = torch.randint(0, 100, (62,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("chunk_sizes", [(1,), (4, 12), (9, 40, 1), (1000,)])
@pytest.mark.parametrize("step", [1, 5, 62])
def test_pieces_add_up_to_the_whole(chunk_sizes, step):
    stream = Toy(chunk_sizes).stream()
    parts = [stream.push(CODES[start : start + step]) for start in range(0, len(CODES), step)]
    assert torch.equal(torch.cat([*parts, stream.flush()]), decode(CODES, 0))
    assert torch.equal(Toy(chunk_sizes).decode(CODES), decode(CODES, 0))


def test_chunks_are_decoded_once_their_context_has_arrived():
    stream = Toy((4, 10)).stream()
    sizes = [len(stream.push([code])) for code in CODES]
    # the first chunk is one group and needs two more, every later chunk is three groups
    assert [number for number, size in enumerate(sizes, start=1) if size] == [12, 24, 36, 48, 60]
    assert [size for size in sizes if size] == [3, 9, 9, 9, 9]


def test_memory_is_bounded():
    toy = Toy((8,))
    stream = toy.stream()
    for code in CODES * 5:
        stream.push([code])
    assert max(toy.windows) <= (2 * CONTEXT + 2) * GROUP


def test_wrong_codes_change_nothing():
    stream = Toy((4,)).stream()
    with pytest.raises(ValueError, match="audio codes must be in 0..99, got 1 others"):
        stream.push([1, 100])
    assert stream.flush().shape == stream.flush().shape == (0,)
    with pytest.raises(ValueError, match="this stream was flushed"):
        stream.push([1])

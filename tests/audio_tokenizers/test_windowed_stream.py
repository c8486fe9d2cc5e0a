"""Streams over a decoder of which each group hears its two neighbours on either side."""

import pytest
import torch

from vita_audio.audio_tokenizers.windowed_stream import WindowedDecoder, WindowedStream

CONTEXT, SAMPLES, GROUP = 2, 3, 4


def decode(codes, first):
    """Each sample is the sum of the first codes of its group and of the groups around it, plus the group's number."""
    groups = torch.tensor([float(code) for code in codes[::GROUP]])
    padded = torch.nn.functional.pad(groups, (CONTEXT, CONTEXT))
    sums = padded.unfold(0, 2 * CONTEXT + 1, 1).sum(1) + torch.arange(first, first + len(groups))
    return sums.repeat_interleave(SAMPLES)


DECODER = WindowedDecoder(decode, 100, GROUP, SAMPLES, CONTEXT)
CODES = torch.randint(0, 100, (62,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("chunk_sizes", [(1,), (4, 12), (9, 40, 1), (1000,)])
@pytest.mark.parametrize("step", [1, 5, 62])
def test_pieces_add_up_to_the_whole(chunk_sizes, step):
    stream = WindowedStream(DECODER, chunk_sizes)
    parts = [stream.push(CODES[start : start + step]) for start in range(0, len(CODES), step)]
    assert torch.equal(torch.cat([*parts, stream.flush()]), decode(CODES, 0))


def test_chunks_come_when_their_surroundings_are_there():
    stream = WindowedStream(DECODER, (4, 10))
    sizes = [len(stream.push([code])) for code in CODES]
    # the first group needs two more behind it, every later chunk is three groups
    assert [number for number, size in enumerate(sizes, start=1) if size] == [12, 24, 36, 48, 60]
    assert [size for size in sizes if size] == [3, 9, 9, 9, 9]


def test_memory_is_bounded():
    stream = WindowedStream(DECODER, (8,))
    held = []
    for code in CODES * 5:
        stream.push([code])
        held.append(len(stream._codes))
    assert max(held) <= (2 * CONTEXT + 2) * GROUP


def test_wrong_codes_change_nothing():
    stream = WindowedStream(DECODER, (4,))
    with pytest.raises(ValueError, match="audio codes must be in 0..99, got 1 others"):
        stream.push([1, 100])
    assert stream.flush().shape == (0,)
    with pytest.raises(ValueError, match="this stream was flushed"):
        stream.push([1])

"""Text that arrives id by id."""

import pytest
import torch
from toy_speech_lm import TINY_TOKENIZER

from vita_audio.inference.streaming import TextStream
from vita_audio.text import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.from_pretrained(TINY_TOKENIZER, 8)


def pushed(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*map(stream.push, ids), stream.flush()]


def test_characters_come_whole(tokenizer):
    text = "naïve 你好吗 🎉👩‍👩‍👧 fin"
    ids = tokenizer.encode(text)
    deltas = pushed(tokenizer, ids)
    assert "".join(deltas) == text and not any("\ufffd" in delta for delta in deltas)
    assert sum(map(bool, deltas)) < len(ids)  # some ids are only a part of a character


def test_special_tokens_are_not_text(tokenizer):
    ids = [*tokenizer.encode("a"), tokenizer.begin_of_audio_id, *tokenizer.encode("b"), tokenizer.im_end_id]
    assert pushed(tokenizer, ids) == ["a", "", "b", "", ""]


def test_character_may_span_two_segments(tokenizer):
    first, *rest = tokenizer.encode("🎉")
    ids = [first, tokenizer.begin_of_audio_id, tokenizer.end_of_audio_id, *rest]
    assert "".join(pushed(tokenizer, ids)) == "🎉"


def test_any_ids_add_up_to_the_whole(tokenizer):
    """Random ids are mostly no characters; the pieces must still equal what decoding everything at once gives."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(0, len(tokenizer) - 8, (20,), generator=generator).tolist()
        assert "".join(pushed(tokenizer, ids)) == tokenizer.decode(ids)

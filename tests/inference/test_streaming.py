"""Text that comes id by id, and generation in a thread."""

import threading

import pytest
import torch
from toy_speech_lm import TINY_TOKENIZER
from transformers import StoppingCriteria

from vita_audio.inference.streaming import TextStream, generate_in_thread
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


def count_to(limit, error=None):
    """Return a stand-in for `generate` that makes the ids 0, 1, ..., and the list of those it made."""
    made = []

    def generate(ids, stop: StoppingCriteria):
        ids.put(torch.tensor([[7, 7, 7]]))  # the prompt
        for number in range(limit):
            made.append(number)
            ids.put(torch.tensor([number]))
            if stop(torch.zeros(1, 1), None).all():
                return
        if error is not None:
            raise error
        ids.end()

    return generate, made


def generating_threads():
    return [thread for thread in threading.enumerate() if thread.name == "generate"]


def test_ids_come_without_the_prompt():
    assert list(generate_in_thread(count_to(5)[0])) == [0, 1, 2, 3, 4]
    assert not generating_threads()


def test_error_follows_the_ids_before_it():
    ids = generate_in_thread(count_to(3, KeyError("lost"))[0])
    assert [next(ids) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="lost"):
        next(ids)
    assert not generating_threads()


@pytest.mark.parametrize("abandon", [lambda ids: ids.close(), lambda ids: None])
def test_abandoning_stops_the_thread(abandon):
    generate, made = count_to(10**9)
    ids = generate_in_thread(generate)
    assert next(ids) == 0
    abandon(ids)
    del ids
    assert not generating_threads() and 0 < len(made) < 10**9


def test_nothing_runs_before_the_first_id_is_wanted():
    generate, made = count_to(3)
    ids = generate_in_thread(generate)
    assert not generating_threads() and not made
    ids.close()
    assert not made

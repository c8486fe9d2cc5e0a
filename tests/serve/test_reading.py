"""Answers in text alone are read aloud, and what was not heard of them is not remembered."""

import asyncio
from contextlib import aclosing

import pytest

from vita_audio.inference.response import Chunk
from vita_audio.serve.conversation import Conversation, Item
from vita_audio.serve.reading import ReadChunk, read_aloud
from vita_audio.serve.records import Record
from vita_audio.serve.scheduler import Piece
from vita_audio.serve.service import Service
from vita_audio.serve.settings import Limits

LIMIT = 40
TEXT = "One two. Three, four!\n--- Five."


def written(speech_lm, text=TEXT):
    """An answer in text, a token at a time."""
    for token_id in speech_lm.tokenizer.encode(text):
        yield Chunk(text=speech_lm.tokenizer.decode([token_id]), ids=[token_id], depths=[0], drafts=[0])


class Speaker:
    """A model that says each text in as many codes as it has letters, two in a chunk; `asked` are its texts."""

    def __init__(self, speech_lm):
        self.tokenizer, self.audio_tokenizer = speech_lm.tokenizer, speech_lm.audio_tokenizer
        self.asked, self.num_closed = [], 0

    def stream(self, conversation, *, max_new_tokens, **options):
        (message,) = conversation["messages"]
        self.asked.append(message["content"].removeprefix("Convert the text to speech.\n"))
        num_codes = min(max_new_tokens, sum(map(str.isalpha, self.asked[-1])))
        try:
            for place in range(0, num_codes, 2):
                codes = [0] * min(2, num_codes - place)
                yield Chunk(text="?", codes=codes, ids=codes, depths=codes, drafts=codes)
        finally:
            self.num_closed += 1


def test_an_answer_in_text_is_read_sentence_by_sentence(speech_lm):
    speaker = Speaker(speech_lm)
    chunks = list(read_aloud(written(speech_lm), speaker, 1000, bare=True))
    assert "".join(chunk.text for chunk in chunks) == TEXT  # the reading adds none
    assert speaker.asked == ["one two", "three four", "five"]
    read = [chunk for chunk in chunks if isinstance(chunk, ReadChunk)]
    assert [chunk.sentence for chunk in read if chunk.sentence] == ["One two.", "Three, four!", "--- Five."]
    assert sum(len(chunk.codes) for chunk in read) == len("onetwothreefourfive")


def test_an_answer_with_speech_or_without_words_is_not_read(speech_lm):
    speaker = Speaker(speech_lm)
    spoken = [*written(speech_lm), Chunk(codes=[1], ids=[1])]
    for answer in (spoken, list(written(speech_lm, " ...\n"))):
        assert list(read_aloud((chunk for chunk in answer), speaker, 1000, bare=False)) == answer
    assert not speaker.asked


@pytest.mark.parametrize("num_more", [-3, 0, 1, 8])
def test_an_answer_and_its_reading_share_their_limit(speech_lm, num_more):
    num_text = len(speech_lm.tokenizer.encode(TEXT))
    answer = (chunk for chunk in list(written(speech_lm))[: num_text + min(0, num_more)])
    chunks = list(read_aloud(answer, Speaker(speech_lm), num_text + num_more, bare=False))
    assert sum(len(chunk.ids) for chunk in chunks) == num_text + num_more


def test_a_reading_ends_with_its_answer(speech_lm):
    speaker = Speaker(speech_lm)
    stream = read_aloud(written(speech_lm), speaker, 1000, bare=False)
    next(chunk for chunk in stream if isinstance(chunk, ReadChunk))
    stream.close()
    assert len(speaker.asked) == speaker.num_closed == 1


def test_a_reading_counts_as_a_part_of_its_answer(speech_lm, monkeypatch):
    """In the record, whose times are those of its sound; other answers are not read."""

    def stream(conversation, **options):
        is_speech = conversation["messages"][-1]["content"].startswith("Convert the text")
        return original(conversation, **options) if is_speech else written(speech_lm, "seven")

    async def run(**options):
        service, record = Service({"toy": speech_lm}, Limits(max_new_tokens=LIMIT)), Record("chat")
        answer = service.submit(Conversation([Item("", "user", "hello")]), record, **options)
        async with aclosing(service.pieces(answer, record)) as pieces:
            chunks = [piece.chunk async for piece in pieces if isinstance(piece, Piece)]
        service.scheduler.close()
        return record, sum(len(chunk.wave) for chunk in chunks)

    original = speech_lm.stream
    monkeypatch.setattr(speech_lm, "stream", stream)
    (silent, num_none), (aloud, num_samples) = asyncio.run(run()), asyncio.run(run(is_aloud=True))
    assert silent.text == aloud.text == "seven" and num_none == 0 < num_samples
    assert not silent.times and aloud.times["model_ms"] + aloud.times["decoder_ms"] > 0
    assert len(silent.depths) < len(aloud.depths)


@pytest.fixture
def item(speech_lm):
    """An answer that was read at three codes a letter, with all of its letters in two sentences."""
    text = "one two three. four"
    item = Item("", "assistant", text, ids=speech_lm.tokenizer.encode(text))
    for sentence, num_codes in (("one two three.", 30), ("", 3), ("four", 0), ("", 12)):
        item.note_reading(sentence, num_codes)
    return item


@pytest.mark.parametrize(
    "num_codes, heard",
    [(0, ""), (1, "on"), (15, "one two"), (33, "one two three."), (36, "one two three. f"), (45, None), (99, None)],
)
def test_of_a_reading_about_as_much_is_kept_as_was_heard(speech_lm, item, num_codes, heard):
    text, frame_rate = item.text, speech_lm.audio_tokenizer.frame_rate
    item.truncate(num_codes / frame_rate, speech_lm)
    heard = text if heard is None else heard
    assert item.text == text[: len(item.text)] and abs(len(item.text) - len(heard)) <= 3
    assert (item.ids == []) == (heard == "") and speech_lm.tokenizer.decode(item.ids) == item.text
    if heard == text:
        assert item.text == text
    kept = item.text
    item.truncate(99, speech_lm)  # of what is left
    assert item.text == kept

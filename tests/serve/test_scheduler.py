"""Interleaved answers are those of the model alone; a queue has places; whoever leaves frees its room at once."""

import asyncio
import threading

import pytest
import torch

from vita_audio.inference.response import Chunk
from vita_audio.inference.tasks import make_conversation
from vita_audio.serve.scheduler import BusyError, GenerationError, Piece, Place, Scheduler

OPTIONS = {"plan": "boost", "do_sample": False, "max_new_tokens": 60}
CONVERSATIONS = [make_conversation("text", text=text) for text in ("hello", "what is the day", "and now")]


@pytest.fixture
def scheduler(speech_lm):
    scheduler = Scheduler(2, 2, speech_lm.audio_tokenizer.output_rate)
    yield scheduler
    scheduler.close()


@pytest.fixture
def opener(speech_lm):
    def opener(conversation):
        return lambda answer: speech_lm.stream(conversation, stopwatch=answer.stopwatch, **OPTIONS)

    return opener


async def collect(answer):
    return [event async for event in answer]


def test_answers_are_those_of_the_model_alone(speech_lm, scheduler, opener):
    async def run():
        answers = [scheduler.submit(opener(conversation)) for conversation in CONVERSATIONS]
        return await asyncio.gather(*map(collect, answers))

    for events, conversation in zip(asyncio.run(run()), CONVERSATIONS, strict=True):
        chunks = [event.chunk for event in events if isinstance(event, Piece)]
        expected = speech_lm.respond(conversation, **OPTIONS)
        assert [token_id for chunk in chunks for token_id in chunk.ids] == expected.ids
        torch.testing.assert_close(sum(len(chunk.wave) for chunk in chunks), len(expected.wave))
        seconds = events[-1].seconds
        assert min(seconds.encoder, seconds.model, seconds.decoder) > 0


def test_streams_take_turns(scheduler, opener):
    """Steps are noted where they are taken, since consumers may see them late."""
    order = []

    def noted(name):
        def open_stream(answer):
            for chunk in opener(CONVERSATIONS[0])(answer):
                order.append(name)
                yield chunk

        return open_stream

    async def run():
        await asyncio.gather(*(collect(scheduler.submit(noted(name))) for name in range(2)))

    asyncio.run(run())
    both = order[order.index(1) : len(order) - order[::-1].index(0)]  # while both were active
    assert len(order) > 8 and order.count(0) == order.count(1) and len(both) > 2
    assert all(one != other for one, other in zip(both, both[1:], strict=False))


def noting(order, name, chunks):
    """Return a stream of chunks that notes where it is asked for the next one."""

    def open_stream(answer):
        for chunk in chunks:
            order.append(name)
            yield chunk

    return open_stream


def in_order(scheduler, *streams):
    """Run streams of (chunks, whether it is in the background), and return the numbers of those that took steps."""

    async def run():
        gate = threading.Event()  # so that all are there before the first step of any
        scheduler.submit(lambda answer: iter(()) if gate.wait() else None)
        answers = [
            scheduler.submit(noting(order, name, chunks), is_background=is_background)
            for name, (chunks, is_background) in enumerate(streams)
        ]
        gate.set()
        await asyncio.gather(*map(collect, answers))

    order = []
    asyncio.run(run())
    return order


def test_an_answer_with_sound_in_store_waits_for_one_without():
    scheduler = Scheduler(3, 0, 1)
    sound, words = Chunk(wave=torch.zeros(1000)), Chunk(text="x")  # a thousand seconds of it
    order = in_order(scheduler, ([sound] * 3, False), ([words] * 5, False))
    scheduler.close()
    assert order == [0, 1, 1, 1, 1, 1, 0, 0]


def test_an_answer_in_the_background_waits_for_others(monkeypatch):
    monkeypatch.setattr("vita_audio.serve.scheduler.BACKGROUND_SECONDS", 1000)
    scheduler = Scheduler(3, 0, 1)
    words = [Chunk(text="x")] * 5
    order = in_order(scheduler, (words, True), (words, False))
    scheduler.close()
    assert order == [1] * 5 + [0] * 5


@pytest.mark.parametrize("is_kept", [True, False])
def test_an_early_answer_ends_when_another_is_submitted_unless_it_was_kept(is_kept):
    scheduler = Scheduler(1, 1, 1)

    async def run():
        gate = threading.Event()  # so that it is in progress when the other one is submitted
        words = (Chunk(text="x") for _ in range(3))
        early = scheduler.submit(lambda answer: words if gate.wait() else None, is_early=True)
        if is_kept:
            assert early.keep()
        other = scheduler.submit(lambda answer: iter([Chunk(text="y")]))
        gate.set()
        events = await collect(other)
        assert early.is_cancelled != is_kept and early.keep() == is_kept
        return [event.number for event in events if isinstance(event, Place)], len(await collect(early))

    places, num_chunks = asyncio.run(run())
    scheduler.close()
    assert (places, num_chunks) == (([1], 3) if is_kept else ([], 0))


def test_an_answer_is_cancelled_within_a_step(speech_lm, scheduler):
    """The codes of all its sound would come in one step; the answer is cancelled at its seventh token."""
    num_tokens, holder = [], []

    def count(ids, scores, **_):
        num_tokens.append(ids.shape[1])
        if len(num_tokens) == 7:
            holder[0].cancel()
        return torch.zeros(len(ids), dtype=torch.bool)

    def open_stream(answer):
        criteria = [answer.stop_if_cancelled, count]
        return speech_lm.stream(CONVERSATIONS[0], stopping_criteria=criteria, decode_audio=False, **OPTIONS)

    async def run():
        holder.append(scheduler.submit(open_stream))
        return await collect(holder[0])

    asyncio.run(run())
    assert len(num_tokens) == 7


def test_waiting_answers_know_their_place_and_the_queue_has_an_end(scheduler, opener):
    async def run():
        answers = [scheduler.submit(opener(CONVERSATIONS[0])) for _ in range(4)]
        with pytest.raises(BusyError, match="busy"):
            scheduler.submit(opener(CONVERSATIONS[0]))
        return await asyncio.gather(*map(collect, answers))

    places = [[event.number for event in events if isinstance(event, Place)] for events in asyncio.run(run())]
    assert places == [[], [], [1], [2, 1]]


def test_a_cancelled_answer_stops_before_its_next_step(scheduler, opener):
    async def run():
        answers = [scheduler.submit(opener(CONVERSATIONS[0])) for _ in range(3)]
        events = []
        async for event in answers[0]:
            events.append(event)
            if len(events) == 2:
                for answer in answers:
                    await answer.close()
        while scheduler.num_active or scheduler.num_waiting:  # until the thread has left the last one
            await asyncio.sleep(0.001)
        return events, [await collect(answer) for answer in answers[1:]]

    whole = len(asyncio.run(collect_one(scheduler, opener)))
    events, _ = asyncio.run(run())
    assert len(events) < whole


async def collect_one(scheduler, opener):
    return await collect(scheduler.submit(opener(CONVERSATIONS[0])))


def test_the_fault_of_one_answer_is_its_own(speech_lm, scheduler, opener, caplog):
    def broken(answer):
        yield from list(speech_lm.stream(CONVERSATIONS[0], **OPTIONS))[:2]
        raise ZeroDivisionError("secret")

    async def run():
        answers = [scheduler.submit(broken), scheduler.submit(opener(CONVERSATIONS[0]))]
        with pytest.raises(GenerationError, match="the log of the server has the reason"):
            await collect(answers[0])
        return await collect(answers[1])

    assert len(asyncio.run(run())) > 2
    assert "secret" in caplog.text

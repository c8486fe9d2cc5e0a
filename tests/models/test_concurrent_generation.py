"""Several generations with one model: nested, in threads, after a failure; none leaves anything on the model."""

import queue
import threading

import pytest
from toy_models import make_model
from transformers import LogitsProcessorList

PLAN = [1, 3, 2, 2]  # more module steps than there are modules
GREEDY = {"do_sample": False, "max_new_tokens": 10, "mtp_inference_mode": PLAN}


@pytest.fixture(scope="module")
def model():
    return make_model(2)


def test_interleaved_generations_do_not_disturb_each_other(model, ids):
    """One generation stops inside another one's step, again and again, each with a plan and cache of its own."""
    others = [GREEDY | {"mtp_inference_mode": mode} for mode in ("turbo", [2, 1])]
    expected = [model.generate(ids[:1], **GREEDY).tolist()]
    expected += [model.generate(ids[1:], **other).tolist() for other in others]
    inner = []

    def nested(input_ids, scores):
        inner.append([model.generate(ids[1:], **other).tolist() for other in others])
        return scores

    outer = model.generate(ids[:1], **GREEDY, logits_processor=LogitsProcessorList([nested]))
    assert outer.tolist() == expected[0]
    assert inner == [expected[1:]] * 10


def test_threads_share_a_model(model, ids):
    plans = [[1, 2], [2, 1], [1, 1, 2, 2], "vanilla"]
    expected = [model.generate(ids, **GREEDY | {"mtp_inference_mode": plan}).tolist() for plan in plans]
    results = queue.Queue()

    def work(index):
        for _ in range(3):
            output = model.generate(ids, **GREEDY | {"mtp_inference_mode": plans[index]})
            results.put((index, output.tolist()))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.qsize() == 12
    while not results.empty():
        index, tokens = results.get()
        assert tokens == expected[index]


def test_a_failed_generation_leaves_nothing_behind(model, ids):
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    expected = model.generate(ids, **GREEDY).tolist()

    def fail(input_ids, scores):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        model.generate(ids, **GREEDY, logits_processor=LogitsProcessorList([fail]))
    assert model.generate(ids, **GREEDY).tolist() == expected
    after = {name: sorted(vars(module)) for name, module in model.named_modules()}
    assert after == before

"""Streamed answers of SpeechLM are those of whole ones, and answers at once do not disturb each other."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest

import pytest
import torch
from toy_conversations import CONVERSATIONS, PLANS, codes_of, text_of, wave_of
from transformers import LogitsProcessor

from vita_audio.inference.pipeline import Chunk, SpeechLM
from vita_audio.models.decode_step import DecodeCounts
from vita_audio.models.quantization import Int8Linear
from vita_audio.stopwatch import Stopwatch

MADE_BY = ("depths", "drafts")


def streamed_wave(speech_lm, codes):
    stream = speech_lm.audio_tokenizer.stream()
    return torch.cat([stream.push(codes), stream.flush()])


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_streamed_equals_whole(speech_lm, plan):
    for conversation in CONVERSATIONS:
        whole = speech_lm.respond(conversation, plan, max_new_tokens=45)
        chunks = list(speech_lm.stream(conversation, plan, max_new_tokens=45))
        assert text_of(chunks) == whole.text and codes_of(chunks) == whole.codes
        assert [token_id for chunk in chunks for token_id in chunk.ids] == whole.ids
        assert whole.text and whole.codes
        depths, drafts = (list(chain.from_iterable(getattr(chunk, name) for chunk in chunks)) for name in MADE_BY)
        assert DecodeCounts.count(depths, drafts) == whole.timings.counts
        wave = wave_of(chunks)
        assert len(wave) == len(whole.wave) and torch.equal(wave, streamed_wave(speech_lm, whole.codes))


def test_sampled_stream_equals_whole_with_the_same_seed(speech_lm):
    options = {"do_sample": True, "temperature": 1.5, "repetition_penalty": 1.1, "max_new_tokens": 40}
    torch.manual_seed(1)
    whole = speech_lm.respond(CONVERSATIONS[0], "boost", **options)
    torch.manual_seed(1)
    chunks = list(speech_lm.stream(CONVERSATIONS[0], "boost", **options))
    assert text_of(chunks) == whole.text and codes_of(chunks) == whole.codes
    torch.manual_seed(2)
    assert speech_lm.respond(CONVERSATIONS[0], "boost", **options).ids != whole.ids


def test_streams_at_once_do_not_disturb_each_other(speech_lm):
    alone = [list(speech_lm.stream(conversation, "boost", max_new_tokens=40)) for conversation in CONVERSATIONS]
    streams = [speech_lm.stream(conversation, "boost", max_new_tokens=40) for conversation in CONVERSATIONS]
    together = list(zip(*zip_longest(*streams, fillvalue=Chunk()), strict=True))  # one chunk of each in turn
    for chunks, expected in zip(together, alone, strict=True):
        assert text_of(chunks) == text_of(expected) and codes_of(chunks) == codes_of(expected)
        assert torch.equal(wave_of(chunks), wave_of(expected))


def test_answers_in_several_threads_equal_answers_in_one(speech_lm):
    def respond(conversation):
        return speech_lm.respond(conversation, "balance", max_new_tokens=30).ids

    expected = [respond(conversation) for conversation in CONVERSATIONS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(respond, CONVERSATIONS)) == expected


class Failing(LogitsProcessor):
    """Raises in step `step`."""

    def __init__(self, step):
        self.step, self.calls = step, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls > self.step:
            raise RuntimeError("the seventh step fails")
        return scores


def module_state(speech_lm):
    modules = [speech_lm.model, speech_lm.audio_tokenizer.encoder, speech_lm.audio_tokenizer.decoder.flow]
    modules.append(speech_lm.audio_tokenizer.decoder.hift)
    return {
        (number, name, key): value if isinstance(value, int | float | str | bool | None) else id(value)
        for number, module in enumerate(modules)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
    }


def test_broken_off_and_failed_streams_leave_nothing_behind(speech_lm):
    expected = speech_lm.respond(CONVERSATIONS[1], "boost", max_new_tokens=30)
    state = module_state(speech_lm)
    stream = speech_lm.stream(CONVERSATIONS[0], "boost", max_new_tokens=300)
    next(stream)
    stream.close()
    for chunk in speech_lm.stream(CONVERSATIONS[2], "boost", max_new_tokens=300):
        if chunk.codes:
            break
    del stream, chunk
    chunks = speech_lm.stream(CONVERSATIONS[0], "turbo", max_new_tokens=40, logits_processor=[Failing(6)])
    with pytest.raises(RuntimeError, match="the seventh step fails"):
        list(chunks)
    assert module_state(speech_lm) == state
    assert speech_lm.respond(CONVERSATIONS[1], "boost", max_new_tokens=30).ids == expected.ids


def test_abandoned_stream_stops_generating(speech_lm):
    counter = Failing(10**9)
    stream = speech_lm.stream(
        CONVERSATIONS[0], "vanilla", max_new_tokens=400, logits_processor=[counter], eos_token_id=-1
    )
    next(stream)
    stream.close()
    calls = counter.calls
    assert 0 < calls < 400 and list(stream) == [] and counter.calls == calls


def test_chunks_end_where_audio_ends(speech_lm):
    tokenizer = speech_lm.tokenizer
    ids = [*tokenizer.encode("a"), tokenizer.begin_of_audio_id, *tokenizer.audio_ids([1, 2, 3])]
    ids += [tokenizer.end_of_audio_id, *tokenizer.encode("b"), tokenizer.begin_of_audio_id, *tokenizer.audio_ids([4])]
    made = ((token_id, 0, 0) for token_id in ids)
    chunks = list(speech_lm._chunks(made, decode_audio=True, voice=None, stopwatch=Stopwatch()))
    assert [(chunk.text, chunk.codes) for chunk in chunks] == [("a", []), ("", [1, 2, 3]), ("b", []), ("", [4])]


def test_time_of_a_stream_is_measured_by_stage(speech_lm):
    """At the first samples, each decoder has run once; the language model runs between all chunks."""
    ticks = iter(range(10**6))
    stopwatch = Stopwatch(clock=lambda: next(ticks))
    stream = speech_lm.stream(CONVERSATIONS[0], "boost", max_new_tokens=45, stopwatch=stopwatch)
    next(chunk for chunk in stream if len(chunk.wave))
    first = dict(stopwatch.seconds)
    ids = [token_id for chunk in stream for token_id in chunk.ids]
    assert first.keys() == {"prompt", "language_model", "flow", "vocoder"} and first["flow"] == first["vocoder"] == 1
    assert ids and stopwatch.seconds["language_model"] > first["language_model"] + len(ids) // 2
    assert stopwatch.seconds["prompt"] == first["prompt"] == 1


def test_a_model_loaded_with_int8_weights_answers(toy_folders, speech_lm):
    quantized = SpeechLM.from_pretrained(toy_folders.model, speech_lm.audio_tokenizer, device="cpu", quantize="int8")
    assert isinstance(quantized.model.lm_head, Int8Linear)
    answer = quantized.respond(CONVERSATIONS[0], "boost", max_new_tokens=20)
    assert answer.ids and (answer.codes == [] or len(answer.wave))
    with pytest.raises(ValueError, match="int4 weights need a GPU"):
        SpeechLM.from_pretrained(toy_folders.model, speech_lm.audio_tokenizer, device="cpu", quantize="int4")

"""SpeechLM on tiny random weights of the real classes: whole and batched answers, and what decides them."""

from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from toy_conversations import CONVERSATIONS, PLANS, QUESTION, codes_of, text_of, wave_of
from transformers import GenerationConfig

from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.interleave import BACKBONE, InterleavePlan


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_batch_equals_single_answers(speech_lm, plan):
    batch = speech_lm.respond_batch(CONVERSATIONS, plan, max_new_tokens=40)
    for response, conversation in zip(batch, CONVERSATIONS, strict=True):
        alone = speech_lm.respond(conversation, plan, max_new_tokens=40)
        assert (response.ids, response.text, response.codes) == (alone.ids, alone.text, alone.codes)
        assert torch.equal(response.wave, alone.wave)
        assert response.timings.num_backbone_passes == alone.timings.num_backbone_passes
    assert speech_lm.respond_batch([]) == []


def test_answers_of_a_batch_end_where_they_end(speech_lm):
    """Rows that end early are padded with a token that also ends answers; none of it belongs to the answer."""
    free = [speech_lm.respond(conversation, max_new_tokens=12).ids for conversation in CONVERSATIONS]
    end = free[0][3]
    lengths = [row.index(end) + 1 if end in row else 12 for row in free]
    batch = speech_lm.respond_batch(CONVERSATIONS, max_new_tokens=12, eos_token_id=end)
    assert [response.ids for response in batch] == [row[:length] for row, length in zip(free, lengths, strict=True)]
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("plan", ["vanilla", "boost"])
@pytest.mark.parametrize("end_ids", [[713], None], ids=["other end", "padding ends too"])
def test_answers_of_a_batch_end_where_criteria_end_them(speech_lm, plan, end_ids):
    """Whether the padding that follows is a token that ends answers or not, none of it belongs to the answer."""
    options = {"max_new_tokens": 12, "decode_audio": False, "eos_token_id": end_ids}
    last = speech_lm.respond(CONVERSATIONS[0], plan, **options).ids[3]
    options["stopping_criteria"] = [lambda input_ids, scores, **kwargs: input_ids[:, -1] == last]
    batch = speech_lm.respond_batch(CONVERSATIONS, plan, **options)
    assert [row.ids for row in batch] == [speech_lm.respond(one, plan, **options).ids for one in CONVERSATIONS]
    assert batch[0].ids[-1] == last and batch[0].timings.num_tokens == len(batch[0].ids) <= 4
    assert len({len(row.ids) for row in batch}) > 1


def test_strings_end_answers_whole_streamed_and_in_a_batch(speech_lm):
    options = {"max_new_tokens": 30, "decode_audio": False}
    free = speech_lm.respond(CONVERSATIONS[0], **options)
    texts = [speech_lm.tokenizer.decode([token_id]) for token_id in free.ids]
    stop = next(text for text in texts[3:] if text.strip().isalpha())
    options["stop_strings"] = [stop]
    alone = [speech_lm.respond(conversation, **options) for conversation in CONVERSATIONS]
    assert alone[0].text.endswith(stop) and len(alone[0].ids) < len(free.ids)
    assert [row.ids for row in speech_lm.respond_batch(CONVERSATIONS, **options)] == [row.ids for row in alone]
    assert text_of(speech_lm.stream(CONVERSATIONS[0], **options)) == alone[0].text


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor])
def test_end_tokens_may_be_given_as_generate_takes_them(speech_lm, kind):
    end = speech_lm.respond(CONVERSATIONS[0], max_new_tokens=12).ids[3]
    options = {"max_new_tokens": 12, "decode_audio": False}
    expected = [response.ids for response in speech_lm.respond_batch(CONVERSATIONS, **options, eos_token_id=[end, 1])]
    batch = speech_lm.respond_batch(CONVERSATIONS, **options, eos_token_id=kind([end, 1]))
    assert [response.ids for response in batch] == expected


def test_only_the_answer_is_heard(speech_lm):
    conversation = make_conversation("sts", audio=QUESTION, voice_prompt=[7, 7, 1])
    prompt = speech_lm.prompt_ids(conversation)
    assert speech_lm.tokenizer.split(prompt)[1] == [7, 7, 1, *QUESTION]
    whole = speech_lm.model.generate(torch.tensor([prompt]), mtp_inference_mode="boost", max_new_tokens=30)
    response = speech_lm.respond(conversation, "boost", max_new_tokens=30)
    assert response.ids == whole[0, len(prompt) :].tolist()
    assert response.codes == speech_lm.tokenizer.split(response.ids)[1]
    assert torch.equal(response.wave, speech_lm.audio_tokenizer.decode(response.codes))


def test_plan_of_the_checkpoint_is_the_default(speech_lm):
    expected = speech_lm.respond(CONVERSATIONS[0], "boost", max_new_tokens=40)
    response = speech_lm.respond(CONVERSATIONS[0], max_new_tokens=40)
    assert response.ids == expected.ids
    steps = list(islice(InterleavePlan.parse("boost").steps(4), 40))
    assert response.timings.num_backbone_passes == steps.count(BACKBONE) < 40 == response.timings.num_tokens
    vanilla = speech_lm.respond(CONVERSATIONS[0], "vanilla", max_new_tokens=40)
    assert vanilla.timings.num_backbone_passes == vanilla.timings.num_tokens


def test_timings(speech_lm):
    response = speech_lm.respond(CONVERSATIONS[0], max_new_tokens=30)
    timings = response.timings
    assert min(timings.encode_seconds, timings.generate_seconds, timings.decode_seconds) > 0
    seconds = len(response.wave) / response.sample_rate
    assert response.real_time_factor == pytest.approx(timings.total_seconds / seconds)
    silent = speech_lm.respond(CONVERSATIONS[0], max_new_tokens=30, decode_audio=False)
    assert silent.wave is None and silent.real_time_factor is None and silent.codes == response.codes


def test_audio_is_a_path_a_wave_or_codes(speech_lm, tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(12000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    codes = speech_lm.audio_tokenizer.encode(wave, 8000)
    expected = speech_lm.prompt_ids(make_conversation("asr", audio=codes))
    assert len(codes) == 19
    for audio in (tmp_path / "a.wav", str(tmp_path / "a.wav"), (wave, 8000), (torch.from_numpy(wave), 8000)):
        assert speech_lm.prompt_ids(make_conversation("asr", audio=audio)) == expected


def test_earlier_spoken_answer_is_laid_out_as_in_training(speech_lm):
    answer = {"role": "assistant", "content": "one two three\n<|audio|>"}
    conversation = {
        "messages": [{"role": "user", "content": "Count"}, answer, {"role": "user", "content": "On"}],
        "audios": [list(range(20))],
    }
    tokenizer = speech_lm.tokenizer
    plan = InterleavePlan.parse([1, 10, 4, 10])
    text = tokenizer.encode("one two three\n")
    laid_out = plan.interleave(
        text, tokenizer.audio_ids(range(20)), tokenizer.begin_of_audio_id, tokenizer.end_of_audio_id
    )
    ids = speech_lm.prompt_ids(conversation)
    start = ids.index(laid_out[0], len(tokenizer.header("user")) + 1)
    assert ids[start : start + len(laid_out)] == laid_out
    assert speech_lm.respond(conversation, "vanilla", max_new_tokens=3).ids


def test_length_may_be_given_as_generate_takes_it(speech_lm):
    num_prompt = len(speech_lm.prompt_ids(CONVERSATIONS[0]))
    expected = speech_lm.respond(CONVERSATIONS[0], max_new_tokens=9).ids
    assert len(expected) == 9
    assert speech_lm.respond(CONVERSATIONS[0], max_length=num_prompt + 9).ids == expected
    with pytest.raises(ValueError, match="512 positions"):
        speech_lm.stream(CONVERSATIONS[0], max_length=513)


def test_arguments_may_be_given_as_a_generation_config(speech_lm):
    config = GenerationConfig(max_new_tokens=9, do_sample=False, mtp_inference_mode="turbo")
    expected = speech_lm.respond(CONVERSATIONS[0], "turbo", max_new_tokens=9, do_sample=False).ids
    assert speech_lm.respond(CONVERSATIONS[0], generation_config=config).ids == expected
    chunks = list(speech_lm.stream(CONVERSATIONS[0], generation_config=config, max_new_tokens=5))
    assert codes_of(chunks) == speech_lm.tokenizer.split(expected[:5])[1]


def test_end_token_in_the_prompt_is_read(speech_lm):
    """Batches are padded with this token; where the user writes it, it is a token like others."""
    conversation = make_conversation("text", text="a<|endoftext|>b")
    whole = speech_lm.respond(conversation, max_new_tokens=20)
    chunks = list(speech_lm.stream(conversation, max_new_tokens=20))
    assert text_of(chunks) == whole.text and codes_of(chunks) == whole.codes
    batch = speech_lm.respond_batch([CONVERSATIONS[1], conversation], max_new_tokens=20)
    assert batch[1].ids == whole.ids != speech_lm.respond(make_conversation("text", text="ab"), max_new_tokens=20).ids


def test_attention_back_ends_agree(speech_lm, toy_folders):
    eager = SpeechLM.from_pretrained(
        toy_folders.model, speech_lm.audio_tokenizer, device="cpu", attn_implementation="eager"
    )
    assert eager.model.config._attn_implementation == "eager" != speech_lm.model.config._attn_implementation
    answers = [one.respond_batch(CONVERSATIONS, max_new_tokens=30, decode_audio=False) for one in (eager, speech_lm)]
    assert [response.ids for response in answers[0]] == [response.ids for response in answers[1]]


def test_callers_stopping_criteria_count(speech_lm):
    def stop_at_ten(input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= num_prompt + 10)

    num_prompt = len(speech_lm.prompt_ids(CONVERSATIONS[0]))
    whole = speech_lm.respond(CONVERSATIONS[0], max_new_tokens=40, stopping_criteria=[stop_at_ten])
    chunks = list(speech_lm.stream(CONVERSATIONS[0], max_new_tokens=40, stopping_criteria=[stop_at_ten]))
    assert len(whole.ids) == 10
    assert text_of(chunks) == whole.text and codes_of(chunks) == whole.codes


def test_answer_without_audio_is_silent(speech_lm):
    tokenizer = speech_lm.tokenizer
    audio_ids = list(range(tokenizer.first_audio_id, tokenizer.first_audio_id + tokenizer.num_audio_codes))
    options = {"max_new_tokens": 12, "suppress_tokens": audio_ids}
    response = speech_lm.respond(CONVERSATIONS[0], **options)
    assert response.codes == [] and response.wave.shape == (0,) and response.real_time_factor is None
    assert len(wave_of(list(speech_lm.stream(CONVERSATIONS[0], **options)))) == 0


def test_answers_speak_with_the_voice_given(speech_lm, monkeypatch):
    sample = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    voice = speech_lm.audio_tokenizer.make_voice(sample, 16_000)
    options = {"plan": "boost", "max_new_tokens": 45}
    plain, spoken = (speech_lm.respond(CONVERSATIONS[0], voice=chosen, **options) for chosen in (None, voice))
    assert spoken.codes == plain.codes and not torch.equal(spoken.wave, plain.wave)
    assert torch.equal(spoken.wave, speech_lm.audio_tokenizer.decode(spoken.codes, voice))
    stream = speech_lm.audio_tokenizer.stream(voice)
    expected = torch.cat([stream.push(spoken.codes), stream.flush()])
    assert torch.equal(wave_of(list(speech_lm.stream(CONVERSATIONS[0], voice=voice, **options))), expected)
    monkeypatch.setattr(speech_lm.audio_tokenizer, "voice_class", None)
    for speak in (speech_lm.respond, speech_lm.stream):
        with pytest.raises(ValueError, match="glm4voice has no voices"):
            speak(CONVERSATIONS[0], voice=voice)

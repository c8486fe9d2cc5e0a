"""SpeechLM on tiny random weights of the real classes: whole, batched and streamed answers, and wrong input."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from toy_speech_lm import TINY_TOKENIZER, load_toy
from transformers import GenerationConfig, LogitsProcessor

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import Chunk, SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.interleave import BACKBONE, InterleavePlan
from vita_audio.text import TextTokenizer

PLANS = ["vanilla", "balance", "boost", "turbo", [2, 3], None]
QUESTION = list(range(0, 48, 3))
CONVERSATIONS = [
    make_conversation("tts", text="Hello"),
    make_conversation("sts", audio=QUESTION, text="你好吗", voice_prompt=[7, 7, 1]),
    make_conversation("text", text="what is the day", system="luke"),
    make_conversation("asr", audio=[5]),
]


@pytest.fixture(scope="module")
def speech_lm(toy_folders):
    return load_toy(toy_folders)


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def codes_of(chunks):
    return [code for chunk in chunks for code in chunk.codes]


def wave_of(chunks):
    return torch.cat([chunk.wave for chunk in chunks])


def streamed_wave(speech_lm, codes):
    stream = speech_lm.audio_tokenizer.stream()
    return torch.cat([stream.push(codes), stream.flush()])


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_streamed_equals_whole(speech_lm, plan):
    for conversation in CONVERSATIONS:
        whole = speech_lm.respond(conversation, plan, max_new_tokens=45)
        chunks = list(speech_lm.stream(conversation, plan, max_new_tokens=45))
        assert text_of(chunks) == whole.text and codes_of(chunks) == whole.codes
        assert whole.text and whole.codes
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
    assert not [thread for thread in threading.enumerate() if thread.name == "generate"]
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
    assert 0 < calls < 400
    assert not [thread for thread in threading.enumerate() if thread.name == "generate"]


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


def test_chunks_end_where_audio_ends(speech_lm):
    tokenizer = speech_lm.tokenizer
    ids = [*tokenizer.encode("a"), tokenizer.begin_of_audio_id, *tokenizer.audio_ids([1, 2, 3])]
    ids += [tokenizer.end_of_audio_id, *tokenizer.encode("b"), tokenizer.begin_of_audio_id, *tokenizer.audio_ids([4])]
    chunks = list(speech_lm._chunks((token_id for token_id in ids), decode_audio=True, voice=None))
    assert [(chunk.text, chunk.codes) for chunk in chunks] == [("a", []), ("", [1, 2, 3]), ("b", []), ("", [4])]


def test_answer_without_audio_is_silent(speech_lm):
    tokenizer = speech_lm.tokenizer
    audio_ids = list(range(tokenizer.first_audio_id, tokenizer.first_audio_id + tokenizer.num_audio_codes))
    options = {"max_new_tokens": 12, "suppress_tokens": audio_ids}
    response = speech_lm.respond(CONVERSATIONS[0], **options)
    assert response.codes == [] and response.wave.shape == (0,) and response.real_time_factor is None
    assert len(wave_of(list(speech_lm.stream(CONVERSATIONS[0], **options)))) == 0


def test_answer_fills_the_positions_at_most(speech_lm):
    """The longest answer ends where the model's positions end; a longer one is refused, not cut."""
    num_prompt = len(speech_lm.prompt_ids(CONVERSATIONS[0]))
    response = speech_lm.respond(CONVERSATIONS[0], "vanilla", decode_audio=False, eos_token_id=-1)
    assert num_prompt + len(response.ids) == speech_lm.model.config.max_position_embeddings == 512
    for call in (speech_lm.respond, speech_lm.stream):
        with pytest.raises(ValueError, match=f"512 positions, got a prompt of {num_prompt} tokens and 512 new ones"):
            call(CONVERSATIONS[0], max_new_tokens=512)


def test_ten_minutes_of_audio_are_refused_before_they_are_encoded(speech_lm):
    conversation = make_conversation("asr", audio=(np.zeros(600 * 8000, dtype=np.float32), 8000))
    with pytest.raises(ValueError, match="audio: too long, the model reads at most 41 s, got 600 s; cut it"):
        speech_lm.stream(conversation)


@pytest.mark.parametrize("seconds", [0.05, 39])
def test_short_and_long_audio_that_fits_is_answered(speech_lm, seconds):
    wave = np.full(int(seconds * 16000), 0.1, dtype=np.float32)
    assert speech_lm.respond(make_conversation("asr", audio=(wave, 16000)), max_new_tokens=2).ids


def test_prompt_that_just_does_not_fit_is_refused(speech_lm):
    with pytest.raises(ValueError, match="512 positions, got a prompt of"):
        speech_lm.respond(make_conversation("asr", audio=[1] * 505))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("missing.wav", "missing.wav: no such audio file"),
        ((np.zeros(0, dtype=np.float32), 16000), "wave must have samples"),
        ((np.full(100, np.nan), 16000), "100 of 100 samples that are NaN"),
        ((np.zeros(100, dtype=np.float32), 0), "sample_rate must be positive, got 0"),
        ([48], r"audio codes must be in 0\.\.47"),
        ([], "audio codes must not be empty"),
    ],
    ids=["missing", "empty", "nan", "rate", "code", "no codes"],
)
def test_wrong_audio_is_refused_at_once(speech_lm, audio, message):
    for call in (speech_lm.respond, speech_lm.stream):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            call(make_conversation("sts", audio=audio))


def test_unknown_plan_is_refused_at_once(speech_lm):
    for call in (speech_lm.respond, speech_lm.stream):
        with pytest.raises(ValueError, match="must be one of vanilla, balance, boost, turbo or integers, got 'warp'"):
            call(CONVERSATIONS[0], "warp")


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
    monkeypatch.setattr(speech_lm.audio_tokenizer, "has_voices", False, raising=False)
    for speak in (speech_lm.respond, speech_lm.stream):
        with pytest.raises(ValueError, match="glm4voice has no voices"):
            speak(CONVERSATIONS[0], voice=voice)


def test_missing_decoder_matters_only_for_waves(toy_folders):
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    speech_lm = SpeechLM.from_pretrained(toy_folders.model, audio_tokenizer, device="cpu")
    chunks = list(speech_lm.stream(CONVERSATIONS[0], max_new_tokens=20, decode_audio=False))
    assert codes_of(chunks) == speech_lm.respond(CONVERSATIONS[0], max_new_tokens=20, decode_audio=False).codes != []
    with pytest.raises(ValueError, match="give decoder_path"):
        list(speech_lm.stream(CONVERSATIONS[0], max_new_tokens=20))
    assert not [thread for thread in threading.enumerate() if thread.name == "generate"]


@pytest.fixture
def changed_model(toy_folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(toy_folders.model, folder)
    return folder


def test_checkpoint_of_another_vocabulary_is_refused(toy_folders, changed_model):
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    TextTokenizer.from_pretrained(TINY_TOKENIZER, 64).save_pretrained(changed_model)
    with pytest.raises(ValueError, match=r"has 64 audio codes, the audio tokenizer glm4voice 48"):
        SpeechLM.from_pretrained(changed_model, audio_tokenizer)


def test_checkpoint_with_fewer_tokens_than_its_tokenizer_is_refused(toy_folders, changed_model):
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    tokenizer = TextTokenizer.from_pretrained(TINY_TOKENIZER, 48)
    tokenizer.base.add_tokens([f"<more_{number}>" for number in range(20)])
    tokenizer.save_pretrained(changed_model)
    with pytest.raises(ValueError, match="the model knows 808 tokens, its text tokenizer has 824"):
        SpeechLM.from_pretrained(changed_model, audio_tokenizer)


def test_other_models_and_missing_folders_are_refused(toy_folders, changed_model, tmp_path):
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'nothing'}"):
        SpeechLM.from_pretrained(tmp_path / "nothing", audio_tokenizer)
    config = json.loads((changed_model / "config.json").read_text())
    (changed_model / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="model_type must be one of qwen2_mtp.*, got qwen2"):
        SpeechLM.from_pretrained(changed_model, audio_tokenizer)


def test_incomplete_weights_are_refused(toy_folders, changed_model):
    weights = load_file(changed_model / "model.safetensors")
    del weights["mtp_projs.1.weight"]
    save_file(weights, changed_model / "model.safetensors", {"format": "pt"})
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    with pytest.raises(ValueError, match="do not fit its config.json: .*mtp_projs.1.weight"):
        SpeechLM.from_pretrained(changed_model, audio_tokenizer)

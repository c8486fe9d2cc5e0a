"""SpeechLM with continuous speech input: what it hears, in which order, batches and streams, and wrong input."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from files.broken_folders import make_pointer
from toy_conversations import PLUS_CONVERSATIONS, SPEECH_RATE, SPOKEN, VOICE, speech
from toy_speech_lm import load_toy, make_toy_folders

from vita_audio.data.audio import load_audio
from vita_audio.data.chat import encode_conversation
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.interleave import InterleavePlan
from vita_audio.speech_features import num_encoder_rows


@pytest.fixture(scope="module")
def speech_lm(plus_folders):
    return load_toy(plus_folders)


def places(row, start, length):
    return torch.stack([torch.full((1, length), row), torch.arange(start, start + length)[None]])


def test_voice_prompt_and_question_go_to_their_own_places(speech_lm):
    """The public code hands them over in the opposite order."""
    tokenizer, front_end = speech_lm.tokenizer, speech_lm.prompt_encoder.front_end
    ids = speech_lm.prompt_ids(PLUS_CONVERSATIONS[0])
    lengths = [num_encoder_rows(len(wave)) for wave, _ in (VOICE, SPOKEN)]
    begins = [place for place, token_id in enumerate(ids) if token_id == tokenizer.begin_of_audio_id]
    assert [ids.index(tokenizer.end_of_audio_id, begin) - begin - 1 for begin in begins] == lengths == [16, 26]
    assert ids.count(tokenizer.context_of_audio_id) == sum(lengths)
    options = {"mtp_inference_mode": "boost", "max_new_tokens": 40}
    audios = [front_end(VOICE[0]), front_end(SPOKEN[0])]
    indices = [places(0, begin + 1, length) for begin, length in zip(begins, lengths, strict=True)]
    output = speech_lm.model.generate(torch.tensor([ids]), audios=audios, audio_indices=indices, **options)
    response = speech_lm.respond(PLUS_CONVERSATIONS[0], "boost", max_new_tokens=40)
    assert response.ids == output[0, len(ids) :].tolist()
    assert response.codes and torch.equal(response.wave, speech_lm.audio_tokenizer.decode(response.codes))
    other = make_conversation("sts", audio=(speech(1.3, 2), SPEECH_RATE), voice_prompt=VOICE)
    assert speech_lm.prompt_ids(other) == ids
    assert speech_lm.respond(other, "boost", max_new_tokens=40).ids != response.ids


@pytest.mark.parametrize("plan", ["vanilla", "boost", [2, 3]], ids=str)
def test_batched_and_streamed_answers_equal_single_ones(speech_lm, plan):
    alone = [speech_lm.respond(conversation, plan, max_new_tokens=30).ids for conversation in PLUS_CONVERSATIONS]
    batch = speech_lm.respond_batch(PLUS_CONVERSATIONS, plan, max_new_tokens=30)
    assert [response.ids for response in batch] == alone
    for conversation, ids in zip(PLUS_CONVERSATIONS, alone, strict=True):
        chunks = list(speech_lm.stream(conversation, plan, max_new_tokens=30))
        text_ids, codes = speech_lm.tokenizer.split(ids)
        assert [code for chunk in chunks for code in chunk.codes] == codes
        assert "".join(chunk.text for chunk in chunks) == speech_lm.tokenizer.decode(text_ids)


def test_audio_is_a_file_or_a_wave_and_channels_are_averaged(speech_lm, tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal((2, 12_000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave.T, 8_000, subtype="FLOAT")

    def features(audio):
        (heard,) = speech_lm._encode(make_conversation("asr", audio=audio)).features
        return heard

    expected = speech_lm.prompt_encoder.front_end(load_audio(tmp_path / "a.wav", SPEECH_RATE, channel="mean"))
    for audio in (tmp_path / "a.wav", str(tmp_path / "a.wav"), (wave, 8_000), (torch.from_numpy(wave), 8_000)):
        torch.testing.assert_close(features(audio), expected)
    assert not torch.allclose(features((wave[0], 8_000)), expected)
    with pytest.raises(ValueError, match=r"must be \(channels, samples\), got shape \(12000, 2\); transpose it"):
        features((wave.T, 8_000))
    with pytest.raises(ValueError, match="divide int16 by 32768"):
        features(((wave * 32768).astype(np.int16), 8_000))


def test_a_prompt_is_the_beginning_of_the_training_document(speech_lm):
    """Also after an earlier spoken answer, which is codes."""
    tokenizer, plan = speech_lm.tokenizer, InterleavePlan.parse([1, 10, 4, 10])
    codes, rows = list(range(20)), num_encoder_rows(len(VOICE[0]))
    messages = [{"role": role, "content": "a <|audio|>"} for role in ("user", "assistant", "user", "assistant")]

    def audio_ids(audio, role):
        return tokenizer.audio_ids(audio) if role == "assistant" else [tokenizer.context_of_audio_id] * rows

    document = encode_conversation({"messages": messages, "audios": [0, codes, 0, codes]}, tokenizer, audio_ids, plan)
    prompt = speech_lm.prompt_ids({"messages": messages[:3], "audios": [VOICE, codes, VOICE]})
    assert document.input_ids[: len(prompt)] == prompt and document.labels[len(prompt)] != -100


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([1, 2, 3], "audio of user is continuous input, got 3 codes; give a file or a wave"),
        (
            (torch.zeros(31 * SPEECH_RATE), SPEECH_RATE),
            "audio: too long, the model reads at most 31 s, got 31 s; cut it into parts",
        ),
        ((torch.zeros(0), SPEECH_RATE), "wave must have samples"),
        ((torch.full((SPEECH_RATE,), float("nan")), SPEECH_RATE), "wave must be finite"),
    ],
)
def test_audio_that_cannot_be_heard_is_one_clear_error(speech_lm, audio, message):
    with pytest.raises(ValueError, match=message):
        speech_lm.respond(make_conversation("asr", audio=audio))


def test_a_released_folder_needs_the_folder_of_the_speech_encoder(plus_folders, speech_lm, tmp_path):
    """It has neither the normalisation nor a word on how audio enters: the placeholder in its vocabulary tells."""
    released = shutil.copytree(plus_folders.model, tmp_path / "released")
    encoder = tmp_path / "SenseVoiceSmall"
    encoder.mkdir()
    shutil.move(released / "am.mvn", encoder)
    config = (released / "tokenizer_config.json").read_text(encoding="utf-8").replace('"audio_input"', '"unused"')
    (released / "tokenizer_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="am.mvn is not in .*released; give the folder of a SenseVoiceSmall"):
        SpeechLM.from_pretrained(released, speech_lm.audio_tokenizer, device="cpu")
    loaded = SpeechLM.from_pretrained(released, speech_lm.audio_tokenizer, device="cpu", audio_model=encoder)
    expected = speech_lm.respond(PLUS_CONVERSATIONS[0], max_new_tokens=20).ids
    assert loaded.respond(PLUS_CONVERSATIONS[0], max_new_tokens=20).ids == expected
    make_pointer(encoder / "am.mvn")
    with pytest.raises(ValueError, match="am.mvn is a Git LFS pointer"):
        SpeechLM.from_pretrained(released, speech_lm.audio_tokenizer, device="cpu", audio_model=encoder)


def test_continuous_input_needs_a_model_that_hears(speech_lm, toy_folders):
    discrete = load_toy(toy_folders)
    with pytest.raises(ValueError, match="user as continuous input, which needs .* got qwen2_mtp and"):
        SpeechLM(discrete.model, speech_lm.tokenizer, discrete.audio_tokenizer, speech_lm.prompt_encoder.front_end)


def test_both_at_once(tmp_path):
    """The user is heard by the encoder and read as codes; the voice prompt is codes."""
    speech_lm = load_toy(make_toy_folders(tmp_path, audio_input={"user": "both"}))
    tokenizer = speech_lm.tokenizer
    codes = [speech_lm.audio_tokenizer.encode(*audio) for audio in (VOICE, SPOKEN)]
    prompt = speech_lm._encode(PLUS_CONVERSATIONS[0])
    assert tokenizer.split(prompt.ids)[1] == codes[0] + codes[1]
    (start,), (features,) = prompt.starts, prompt.features
    rows = [tokenizer.context_of_audio_id] * (4 + len(features))
    inner = rows + tokenizer.audio_ids(codes[1])
    assert prompt.ids[start - 1 : start + len(inner) + 1] == [
        tokenizer.begin_of_audio_id,
        *inner,
        tokenizer.end_of_audio_id,
    ]
    alone = [speech_lm.respond(conversation, max_new_tokens=20).ids for conversation in PLUS_CONVERSATIONS]
    assert [response.ids for response in speech_lm.respond_batch(PLUS_CONVERSATIONS, max_new_tokens=20)] == alone

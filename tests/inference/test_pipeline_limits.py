"""What SpeechLM refuses: answers and audio without room, wrong audio, checkpoints that do not fit."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file
from toy_conversations import CONVERSATIONS, codes_of
from toy_speech_lm import TINY_TOKENIZER

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.text import TextTokenizer


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


def test_a_file_that_is_too_long_is_not_read(speech_lm, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.flac", np.zeros(50 * 8000, dtype=np.float32), 8000)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *arguments, **options: pytest.fail("the file was read"))
    with pytest.raises(ValueError, match="long.flac: too long, the model reads at most 41 s, got 50 s"):
        speech_lm.respond(make_conversation("asr", audio=tmp_path / "long.flac"))


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


def test_missing_decoder_matters_only_for_waves(toy_folders):
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    speech_lm = SpeechLM.from_pretrained(toy_folders.model, audio_tokenizer, device="cpu")
    chunks = list(speech_lm.stream(CONVERSATIONS[0], max_new_tokens=20, decode_audio=False))
    assert codes_of(chunks) == speech_lm.respond(CONVERSATIONS[0], max_new_tokens=20, decode_audio=False).codes != []
    with pytest.raises(ValueError, match="give decoder_path"):
        list(speech_lm.stream(CONVERSATIONS[0], max_new_tokens=20))


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
    with pytest.raises(ValueError, match="model_type must be one of .*qwen2_mtp.*, got qwen2"):
        SpeechLM.from_pretrained(changed_model, audio_tokenizer)


def test_incomplete_weights_are_refused(toy_folders, changed_model):
    weights = load_file(changed_model / "model.safetensors")
    del weights["mtp_projs.1.weight"]
    save_file(weights, changed_model / "model.safetensors", {"format": "pt"})
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    with pytest.raises(ValueError, match="do not fit its config.json: .*mtp_projs.1.weight"):
        SpeechLM.from_pretrained(changed_model, audio_tokenizer)

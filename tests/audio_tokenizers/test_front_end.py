"""The front end of the embedded tokenizer: codes that level and surrounding silence do not change."""

import json
import shutil

import pytest
import soundfile
import torch
from tiny_folders import ASSETS

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.audio_tokenizers.front_end import HEAD_SECONDS, TAIL_SECONDS, frame_speech
from vita_audio.audio_tokenizers.glm4voice import EMBEDDED_TOKENIZER

RATE = 16000
CONFIG = "preprocessor_config.json"


@pytest.fixture(scope="module")
def embedded():
    return get_audio_tokenizer("glm4voice")


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory):
    """The embedded weights without a front end, as a released tokenizer loads."""
    folder = shutil.copytree(EMBEDDED_TOKENIZER, tmp_path_factory.mktemp("tokenizer") / "released")
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    del settings["speech_level"]
    (folder / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    return get_audio_tokenizer("glm4voice", folder)


@pytest.fixture(scope="module")
def speech():
    samples, rate = soundfile.read(ASSETS / "vq_wav" / "speech_short.wav", dtype="float32")
    assert rate == RATE
    return torch.from_numpy(samples)


def silence(seconds):
    return torch.zeros(round(seconds * RATE))


@pytest.mark.parametrize("gain", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("seconds", [0, 1, 2])
def test_level_and_silence_do_not_change_the_codes(embedded, as_it_is, speech, gain, seconds):
    changed = torch.cat([silence(seconds), gain * speech, silence(seconds)])
    codes = embedded.encode(speech, RATE)
    assert embedded.encode(changed, RATE) == codes
    assert embedded.encode_batch([changed, speech], RATE) == [codes, codes]
    if seconds or gain < 0.5:
        assert as_it_is.encode(changed, RATE) != as_it_is.encode(speech, RATE)


def test_speech_gets_its_level_and_its_silence(speech):
    burst = torch.cat([silence(1.0), 0.01 * torch.sin(torch.arange(RATE) * 0.3), silence(3.0)])
    framed = frame_speech(burst, RATE, 0.2)
    assert framed.abs().max() == pytest.approx(0.2 * 2**0.5, rel=0.1)
    assert len(framed) == pytest.approx(RATE * (1 + HEAD_SECONDS + TAIL_SECONDS), abs=0.1 * RATE)
    assert framed[: round(0.1 * RATE)].abs().max() == 0 == framed[-round(0.2 * RATE) :].abs().max()


def test_room_noise_counts_as_silence(speech):
    generator = torch.Generator().manual_seed(0)
    surrounded = torch.cat([silence(2), speech, silence(2)])
    noisy = surrounded + 0.01 * torch.randn(len(surrounded), generator=generator)
    difference = len(frame_speech(noisy, RATE, 0.1)) - len(frame_speech(speech, RATE, 0.1))
    assert abs(difference) < 0.3 * RATE


@pytest.mark.parametrize("wave", [torch.zeros(RATE), torch.zeros(1)])
def test_silence_alone_is_not_changed(wave):
    assert torch.equal(frame_speech(wave, RATE, 0.1), wave)


def test_only_the_embedded_tokenizer_has_a_front_end(embedded, as_it_is, tmp_path):
    assert as_it_is.speech_level is None and embedded.speech_level == 0.11
    assert as_it_is.fingerprint != embedded.fingerprint
    embedded.save_pretrained(tmp_path)
    assert get_audio_tokenizer("glm4voice", tmp_path).fingerprint == embedded.fingerprint


def test_a_voice_has_codes_and_mel_of_the_same_speech(embedded, speech):
    voice = embedded.make_voice(torch.cat([silence(2), 0.05 * speech, silence(2)]), RATE)
    assert voice.codes == embedded.encode(speech, RATE)
    seconds = voice.mel.shape[-1] * 256 / embedded.output_rate
    assert seconds == pytest.approx(len(voice.codes) / embedded.frame_rate, abs=1 / embedded.frame_rate)

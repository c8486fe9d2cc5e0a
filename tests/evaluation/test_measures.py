"""Voice and sound; samples without audio never help."""

import pytest
import torch

from evaluation.judges import PredictedMos, SpeakerSimilarity
from evaluation.metrics.ours import corrected_error_rate
from evaluation.metrics.score import Score

RATE = 16_000
SILENT = [None, (torch.zeros(0), RATE), (torch.zeros(RATE), RATE), (torch.ones(10), RATE)]


def voice(pitch: float, seconds: float = 1.5, noise: float = 0.0) -> tuple[torch.Tensor, int]:
    """Something like a vowel: harmonics of a pitch, and noise."""
    time = torch.arange(round(seconds * RATE)) / RATE
    generator = torch.Generator().manual_seed(0)
    wave = sum(torch.sin(2 * torch.pi * pitch * k * time) / k for k in range(1, 12))
    return 0.2 * wave + noise * torch.randn(len(time), generator=generator), RATE


def test_a_voice_is_more_like_itself_than_like_another_and_no_voice_like_none():
    pytest.importorskip("resemblyzer")
    similarity = SpeakerSimilarity()
    same, other, none = (similarity.measure(sound, voice(112)) for sound in (voice(110), voice(230), None))
    assert same > other > none == 0
    with pytest.raises(ValueError, match="needs a voice to be compared with"):
        similarity.measure(voice(110), SILENT[2])


def test_noise_lowers_the_predicted_opinion_and_silence_has_the_lowest():
    pytest.importorskip("speechmos.dnsmos")
    mos = PredictedMos()
    clean, noisy, none = (mos.measure(sound) for sound in (voice(120), voice(120, noise=0.3), None))
    assert clean > noisy > none == 1


@pytest.mark.parametrize(
    "module, plug_in, message",
    [
        ("resemblyzer", SpeakerSimilarity, "speaker similarity needs the package resemblyzer"),
        ("speechmos.dnsmos", PredictedMos, r"predicted MOS needs the package speechmos .*\[evaluation-mos\]"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, plug_in, message):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=message):
        plug_in()


@pytest.mark.parametrize(
    "values, message",
    [
        (([], []), "needs samples, got none"),
        (([1], [1, 1]), "every numerator needs its denominator, got 1 and 2"),
        (([float("nan")], [1]), "finite numbers, got NaN or infinity; count such samples as wrong"),
        (([1, 1], [0, 0]), "got 2 with sum 0; are all references empty"),
        (([1, 1], [-1, 2]), "denominators from 0 up"),
        (([1, 1], [1, 1], ["a", "a"]), "ids must differ within a score, got more than one of a"),
        (([1, 1], [1, 1], ["a"]), "every sample needs its id, got 2 and 1"),
    ],
)
def test_a_score_refuses_samples_that_would_be_lost(values, message):
    with pytest.raises(ValueError, match=message):
        Score(*values)


def test_half_the_audio_missing_makes_half_the_words_wrong():
    """A judge hears nothing there, so the rate is that of all samples, not of those that were answered."""
    from toy_corpus import LengthJudge

    sounds = [voice(120, 0.4), None, voice(120, 0.4), SILENT[2]]
    heard = LengthJudge().transcribe(sounds)
    assert heard[1] == heard[3] == ""
    references = [heard[0]] * 4
    assert corrected_error_rate(references, heard).value == 0.5

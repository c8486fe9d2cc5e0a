"""Silence around synthetic speech, and its files; voices are tested with the corpora they speak."""

import numpy as np
import pytest
import soundfile

from tools.common.synthetic_speech import HEAD_SECONDS, TAIL_SECONDS, trim_silence, write_flac

RATE = 22050


@pytest.mark.parametrize("before, after", [(0.0, 0.0), (0.5, 0.7)])
def test_silence_around_speech_gets_its_fixed_length(before, after):
    speech = 0.5 * np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    silence = [np.zeros(int(seconds * RATE), np.float32) for seconds in (before, after)]
    trimmed = trim_silence(np.concatenate([silence[0], speech, silence[1]]), RATE)
    loud = np.flatnonzero(np.abs(trimmed) > 0.1)
    assert loud[0] / RATE == pytest.approx(HEAD_SECONDS, abs=0.011)
    assert (len(trimmed) - loud[-1]) / RATE == pytest.approx(TAIL_SECONDS, abs=0.011)
    assert len(trimmed) / RATE == pytest.approx(1.35, abs=0.021)


@pytest.mark.parametrize("samples", [0, RATE])
def test_a_silent_rendering_is_an_error(samples):
    with pytest.raises(ValueError, match="must contain speech"):
        trim_silence(np.zeros(samples, np.float32), RATE)


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    wave = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    write_flac(tmp_path / "a.flac", wave, RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]
    read, rate = soundfile.read(tmp_path / "a.flac")
    assert rate == RATE and read == pytest.approx(wave, abs=1e-4)

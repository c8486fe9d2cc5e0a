"""The page's own signal processing against well-known libraries."""

import base64
import io
import zipfile

import librosa
import numpy as np
import pytest
import soundfile
from page_browser import SPEECH, needs_chromium, opened

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(server, chromium):
    with opened(chromium, server) as page:
        yield page


def test_mel_spectrogram(page):
    wave, rate = soundfile.read(SPEECH, frames=16_000)
    script = "([wave, rate]) => import('/static/mel.js').then((mel) => mel.melSpectrogram(wave, rate))"
    found = np.array(page.evaluate(script, [wave.tolist(), rate])).T
    options = {"n_fft": 1024, "hop_length": 256, "n_mels": 80, "center": False, "htk": True, "norm": None}
    expected = librosa.feature.melspectrogram(y=wave, sr=rate, **options)
    assert np.abs(found - 10 * np.log10(np.maximum(1e-10, expected))).max() < 1e-3


@pytest.mark.parametrize("rate", [44_100, 48_000, 8000])
def test_resampling(page, rate):
    """What both rates can carry passes unchanged, however it is cut; the rest vanishes."""
    script = """async ([wave, rate]) => {
      const { Resampler } = await import("/static/resampler.js");
      const resampler = new Resampler(rate, 16000);
      const found = [];
      for (let i = 0; i < wave.length; i += 128) found.push(...resampler.push(wave.slice(i, i + 128)));
      return found;
    }"""
    times = np.arange(rate) / rate
    kept, lost = (np.sin(2 * np.pi * hertz * times) for hertz in (1000, 11_000))
    found = np.array(page.evaluate(script, [kept.tolist(), rate]))
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(found)) / 16_000)
    inside = slice(200, -200)
    assert len(found) > 15_900 and np.abs(found - expected)[inside].max() < 2e-4
    if rate > 22_000:
        assert np.abs(page.evaluate(script, [lost.tolist(), rate]))[inside].max() < 2e-3


def test_zip(page):
    files = {"a.txt": b"", "对话.wav": bytes(range(256)) * 300}
    script = """async (files) => {
      const [{ zip }, { toBytes }] = await Promise.all([import("/static/zip.js"), import("/static/pcm.js")]);
      const blob = zip(files.map(([name, data]) => [name, toBytes(data)]));
      return [...new Uint8Array(await blob.arrayBuffer())];
    }"""
    made = page.evaluate(script, [[name, base64.b64encode(data).decode()] for name, data in files.items()])
    with zipfile.ZipFile(io.BytesIO(bytes(made))) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == files

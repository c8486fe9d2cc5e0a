"""What microphones do to recognition, measured with the model of the package on two recordings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tools.demo import hearing
from tools.demo.hearing import CONDITIONS, RECORDED

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "vita_audio" / "assets" / "demo_model"
RECORDINGS = {"inside": "what is the capital of france", "date": "the third of december"}


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(ROOT / "tests" / "assets" / "demo_model", folder)
    rows = [{"id": name, "audio": f"{name}.flac", "reference": text} for name, text in RECORDINGS.items()]
    (folder / "heldout_asr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_condition_is_measured_plotted_and_compared(corpus, tmp_path, capsys):
    output = tmp_path / "hearing"
    hearing.main(["--model", str(MODEL), "--corpus", str(corpus), "--output", str(output), "--device", "cpu"])
    report = json.loads((output / "hearing.json").read_text())
    assert report["num_recordings"] == 2 and list(report["wer"]) == list(CONDITIONS)
    assert report["wer"][RECORDED]["value"] == report["wer"]["gain 0.05"]["value"] == 0
    assert report["wer"]["2 s of silence around"]["less_as_recorded"]["difference"] == 0
    assert (output / "hearing.png").stat().st_size > 5000
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == list(CONDITIONS) and "0.0 %" in lines[0]


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_the_same_for_the_same_recording(name):
    wave = np.sin(np.arange(8000) * 0.1).astype(np.float32)
    first, second = (CONDITIONS[name](wave, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second) and np.isfinite(first).all()
    assert (name == RECORDED) == (len(first) == len(wave) and np.allclose(first, wave))


def test_a_corpus_without_recordings_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        hearing.main(["--corpus", str(tmp_path), "--output", str(tmp_path)])
    assert capsys.readouterr().err.splitlines()[-1].startswith("tools.demo.hearing: no ")

"""The training tool of the speech encoder on synthetic tones: it learns, resumes and leaves a folder a model takes."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from models.toy_models import make_plus_model

from tools.codec import train_encoder
from tools.codec.corpus import load_corpus
from tools.codec.encoder_training import draw_batch, features_of, measure_normalisation
from vita_audio.models.surgery import load_speech_encoder
from vita_audio.speech_features import QUERIES, SenseVoiceFrontEnd, num_encoder_rows

ROOT = Path(__file__).parents[3]
RATE = 22_050
SIZES = {"output_size": 16, "linear_units": 24, "num_blocks": 2, "tp_blocks": 1, "vocab_size": 760}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Low tones are called "no", high ones "yes"."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for index in range(24):
        wave = np.sin(2 * math.pi * (300 if index % 2 else 2000) * np.arange(round((0.5 + 0.01 * index) * RATE)) / RATE)
        soundfile.write(folder / f"{index}.flac", 0.3 * wave, RATE)
        rows.append({"audio": f"{index}.flac", "text": "no" if index % 2 else "yes", "voice": "tone"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_features_are_normalised_and_augmented_with_a_generator_only(corpus):
    utterances = load_corpus(corpus)
    front_end = measure_normalisation(utterances)
    features = torch.cat([features_of(utterance, front_end, None) for utterance in utterances])
    assert features.mean(0).abs().max() < 1e-3 and (features.std(0) - 1).abs().max() < 1e-2
    plain = features_of(utterances[0], front_end, None)
    assert len(plain) == num_encoder_rows(8000) - len(QUERIES)
    assert torch.equal(plain, features_of(utterances[0], front_end, None))
    other = features_of(utterances[0], front_end, random.Random(0))
    assert other.shape != plain.shape or not torch.allclose(other, plain)
    assert sum(len(u.wave) / u.rate for u in draw_batch(utterances, 3.0, random.Random(0))) >= 3.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["--corpus", "gone"], "no gone/manifest.jsonl"),
        (["--data", "gone.jsonl"], "no gone.jsonl; give a .jsonl file of recognition samples"),
    ],
)
def test_speech_that_is_not_there_is_one_line(source, message, tmp_path, capsys):
    options = ["--config", ROOT / "configs/models/tiny_sensevoice_mtp0.json", "--output", tmp_path / "run"]
    options += ["--tokenizer", ROOT / "tests/assets/tiny_tokenizer"]
    with pytest.raises(SystemExit):
        train_encoder.main([*source, *map(str, options)])
    error = capsys.readouterr().err
    assert error.startswith("train_encoder: ") and message in error and error.count("\n") == 1


def test_batches_without_speech_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_encoder.main(["--corpus", "x", "--output", str(tmp_path), "--batch-seconds", "0"])
    assert "--batch-seconds: must be above 0, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "must have the speech encoder's sizes under audio_config, got None"),
        ({"audio_config": SIZES | {"depth": 3}}, "audio_config has unknown sizes depth; take them out"),
    ],
)
def test_config_without_a_speech_encoder_is_one_line(values, message, corpus, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(values), encoding="utf-8")
    options = ["--corpus", corpus, "--config", config, "--output", tmp_path / "run"]
    options += ["--tokenizer", ROOT / "tests/assets/tiny_tokenizer"]
    with pytest.raises(SystemExit):
        train_encoder.main([*map(str, options)])
    error = capsys.readouterr().err
    assert str(config) in error and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_encoder_learns_resumes_and_is_taken_by_a_model(corpus, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"audio_config": SIZES}), encoding="utf-8")
    options = ["--corpus", corpus, "--config", config, "--tokenizer", ROOT / "tests/assets/tiny_tokenizer"]
    options += ["--output", tmp_path / "run", "--device", "cpu", "--no-bf16", "--held-out", 4, "--warmup", 5]
    options += ["--batch-seconds", 5, "--lr", 1e-2, "--save-every", 60]
    for num_steps in (60, 180):
        command = [sys.executable, "-m", "tools.codec.train_encoder", *options, "--steps", num_steps]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr[-3000:]
    assert "continuing at step 60 of 180" in result.stdout
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in log] == [60, 120, 180] and log[-1]["token_error"] < 0.2
    (weights,) = (tmp_path / "run/encoder").glob("*.safetensors")
    assert weights.stat().st_mode == (tmp_path / "run/log.jsonl").stat().st_mode  # readable by whoever may read others
    model = make_plus_model(1, audio_config=SIZES)
    load_speech_encoder(model, tmp_path / "run/encoder")
    assert SenseVoiceFrontEnd.from_pretrained(tmp_path / "run/encoder").scale.isfinite().all()

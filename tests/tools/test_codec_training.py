"""The codec's training tools on half a minute of synthetic tones: they run, resume and export loadable folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

TOOLS = Path(__file__).parents[2] / "tools"
RATE = 22050


def run(tool: str, *arguments: object) -> str:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Twelve clips of voiced noise in one voice, two in another, and one row that cannot be read."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(26):
        time = np.arange(int(1.2 * RATE)) / RATE
        wave = sum(np.sin(2 * np.pi * (110 + 3 * index) * h * time) / h for h in range(1, 9)) * 0.1
        soundfile.write(folder / f"{index}.flac", wave + 0.003 * rng.standard_normal(len(time)), RATE)
        voice = "main" if index < 20 else "other"
        rows.append({"audio": f"{index}.flac", "text": "one two", "phones": list("wʌn tuː"), "voice": voice})
    rows.append({"audio": "missing.flac", "text": "gone", "voice": "main"})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


TINY = ("--width", 32, "--ffn", 32, "--layers", 1, "--codes", 16, "--batch-seconds", 3, "--warmup", 2)


@pytest.mark.slow
def test_tokenizer_flow_and_vocoder_train_resume_and_export(corpus, tmp_path):
    common = ("--corpus", corpus, "--voice", "main", "--device", "cpu", "--held-out", 2)
    tokenizer_run = (*common, *TINY, "--output", tmp_path / "tokenizer", "--quantize-from", 3, "--save-every", 4)
    printed = run("train_speech_tokenizer.py", *tokenizer_run, "--steps", 4)
    assert "26 utterances read, 1 skipped" in printed and "manifest.jsonl:27" in printed
    assert "continuing at step 4" in run("train_speech_tokenizer.py", *tokenizer_run, "--steps", 6)

    run(
        "train_speech_decoder.py", "vocoder", *common, "--output", tmp_path / "vocoder", "--steps", 2, "--batch-size", 2
    )
    flow = ("--tokenizer", tmp_path / "tokenizer" / "tokenizer", "--joined", 2, "--frames-per-batch", 200)
    flow += ("--output", tmp_path / "flow", "--prior-steps", 1, "--steps", 2)
    run("train_speech_decoder.py", "flow", *common, *flow)
    folders = ("--vocoder", tmp_path / "vocoder", "--flow", tmp_path / "flow", "--output", tmp_path / "decoder")
    run("train_speech_decoder.py", "export", *folders)

    from vita_audio.audio_tokenizers import get_audio_tokenizer

    tokenizer = get_audio_tokenizer("glm4voice", tmp_path / "tokenizer" / "tokenizer", tmp_path / "decoder")
    wave, rate = soundfile.read(corpus / "0.flac", dtype="float32")
    codes = tokenizer.encode(torch.from_numpy(wave), rate)
    assert len(codes) == 15  # 1.2 s at 12.5 codes per second
    assert abs(len(tokenizer.decode(codes)) - len(wave)) < 256 * 2

"""The two data tools, run as a user runs them, on a tiny speech tokenizer with random weights."""

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder

ROOT = Path(__file__).parents[2]
TINY_TOKENIZER = ROOT / "tests/assets/tiny_tokenizer"
NUM_CODES = 48


@pytest.fixture(scope="module")
def speech_tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    config = WhisperVQConfig(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        num_mel_bins=16,
        pooling_position=1,
        quantize_position=1,
        quantize_vocab_size=NUM_CODES,
    )
    folder = tmp_path_factory.mktemp("speech_tokenizer")
    GLM4VoiceTokenizer(WhisperVQEncoder(config), WhisperFeatureExtractor(feature_size=16)).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path, write_mixture):
    """A question, an answer and a recording that is no audio, with a sample for each format."""
    for name, seconds, rate in (("question", 1.0, 44_100), ("answer", 2.0, 8_000)):
        wave = 0.3 * np.sin(2 * math.pi * 300 * np.arange(round(seconds * rate)) / rate)
        soundfile.write(tmp_path / f"{name}.wav", wave, rate)
    (tmp_path / "bad.wav").write_bytes(b"")

    def chat(user, assistant, *audios):
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return {"messages": messages, "audios": list(audios)}

    return write_mixture(
        [
            chat("<|audio|>", "Paris is the capital.\n<|audio|>", "question.wav", "answer.wav"),
            chat("Convert the speech to text.\n<|audio|>", "What is the capital?", "question.wav"),
            chat("Convert the text to speech.\nParis is the capital.", "<|audio|>", "answer.wav"),
            chat("<|audio|>", "Never heard.", "bad.wav"),
            chat("Hello", "Hi."),
        ]
    )


def run_tool(name, *arguments):
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_tool_here(capsys, name, *arguments):
    """Run a tool in this process, which saves the seconds of its imports."""
    runpy.run_path(str(ROOT / "tools" / name))["main"]([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_extract_and_inspect(corpus, speech_tokenizer, tmp_path, capsys):
    flags = ["--codes", tmp_path / "codes", "--audio-tokenizer-path", speech_tokenizer]
    first = run_tool("extract_audio_codes.py", "--data", corpus, *flags, "--devices", "cpu", "--processes", 1)
    assert "3 audio files: 0 had codes, 2 encoded, 1 failed" in first
    assert "bad.wav: file is empty" in first
    again = run_tool_here(capsys, "extract_audio_codes.py", "--data", corpus, *flags, "--devices", "cpu")
    assert "3 audio files: 2 had codes, 0 encoded, 1 failed" in again

    flags += ["--data", corpus, "--tokenizer", TINY_TOKENIZER, "--max-length", 512, "--num-samples", 5]
    shown = run_tool_here(capsys, "inspect_data.py", *flags)
    assert "question.wav" in shown and "1.00 s  44100 Hz  1 channel  13 codes (13.0/s)" in shown
    assert "25 codes (12.5/s)" in shown
    assert "data.jsonl:4: left out: " in shown
    assert "4 documents" in shown and "in 1 packs of 512, fill" in shown and "left out, unusable audio: 1" in shown

    result = json.loads(run_tool_here(capsys, "inspect_data.py", *flags, "--json"))
    samples = {sample["line"]: sample for sample in result["samples"]}
    assert sorted(samples) == [1, 2, 3, 4, 5]
    assert "bad.wav: file is empty" in samples[4]["error"]
    spoken = samples[3]
    assert spoken["text"].endswith("assistant\nParis is the capital.\n")
    assert spoken["audios"][0]["seconds"] == 2.0 and spoken["audios"][0]["num_codes"] == 25
    assert len(spoken["input_ids"]) == len(spoken["labels"]) == spoken["num_tokens"]
    assert [(c["start"], c["stop"]) for c in spoken["chunks"]][-1][1] == spoken["num_tokens"]
    answer_chunks = [len(chunk["codes"]) for chunk in spoken["chunks"] if chunk["kind"] == "audio"]
    assert answer_chunks[0] == 8 and sum(answer_chunks) == 25
    assert not any(chunk["learnt"] for chunk in samples[2]["chunks"] if chunk["kind"] == "audio")
    assert result["packs"]["num_documents"] == 4 and 0 < result["packs"]["fill"] < 1


def test_continuous_input_needs_codes_of_answers_only(corpus, speech_tokenizer, tmp_path, capsys):
    flags = ["--codes", tmp_path / "codes", "--audio-tokenizer-path", speech_tokenizer, "--data", corpus]
    flags += ["--audio-tokenizer-type", "sensevoice_glm4voice"]
    done = run_tool_here(capsys, "extract_audio_codes.py", *flags, "--devices", "cpu")
    assert "1 audio files: 0 had codes, 1 encoded, 0 failed" in done
    shown = run_tool_here(capsys, "inspect_data.py", *flags, "--tokenizer", TINY_TOKENIZER, "--num-samples", 5)
    assert "1.00 s  44100 Hz  1 channel  21 rows (21.0/s)" in shown and "[21 rows]" in shown
    assert "25 codes (12.5/s)" in shown and "bad.wav: file is empty" in shown
    flags += ["--audio-input", "user=both"]
    done = run_tool_here(capsys, "extract_audio_codes.py", *flags, "--devices", "cpu")
    assert "3 audio files: 1 had codes, 1 encoded, 1 failed" in done
    shown = run_tool_here(capsys, "inspect_data.py", *flags, "--tokenizer", TINY_TOKENIZER, "--num-samples", 5)
    assert "21 rows (21.0/s), 13 codes (13.0/s)" in shown


@pytest.mark.slow
def test_the_program_encodes_on_ray(corpus, speech_tokenizer, tmp_path, capsys):
    pytest.importorskip("ray")
    flags = ["--codes", tmp_path / "codes", "--audio-tokenizer-path", speech_tokenizer, "--devices", "cpu"]
    first = run_tool("extract_audio_codes.py", "--data", corpus, *flags, "--ray", "--processes", 2)
    assert "3 audio files: 0 had codes, 2 encoded, 1 failed" in first and "bad.wav: file is empty" in first
    again = run_tool_here(capsys, "extract_audio_codes.py", "--data", corpus, *flags)
    assert "3 audio files: 2 had codes, 0 encoded, 1 failed" in again


def test_samples_without_codes_are_shown_as_left_out(corpus, speech_tokenizer, tmp_path, capsys):
    flags = ["--codes", tmp_path / "codes", "--audio-tokenizer-path", speech_tokenizer]
    (tmp_path / "text.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    text = tmp_path / "text.yaml"
    text.write_text("dataset: {text: {data_paths: [text.jsonl]}}")
    run_tool_here(capsys, "extract_audio_codes.py", "--data", text, *flags, "--devices", "cpu")
    flags += ["--data", corpus, "--tokenizer", TINY_TOKENIZER, "--num-samples", 5]
    shown = run_tool_here(capsys, "inspect_data.py", *flags)
    assert re.search(r"data\.jsonl:1: left out: no codes for .*question\.wav", shown)
    assert "data.jsonl:5  " in shown
    assert re.search(r"^no packs: no codes for .*; run tools/extract_audio_codes\.py$", shown, re.MULTILINE)
    result = json.loads(run_tool_here(capsys, "inspect_data.py", *flags, "--json"))
    assert result["packs"]["error"].startswith("no codes for ") and len(result["samples"]) == 5


def test_wrong_paths_are_one_line_and_leave_nothing_behind(corpus, speech_tokenizer, tmp_path, capsys):
    def error_line(tool, **changes):
        flags = {"data": corpus, "codes": tmp_path / "codes", "audio-tokenizer-path": speech_tokenizer, **changes}
        with pytest.raises(SystemExit) as exit:
            run_tool_here(capsys, tool, *(part for name, value in flags.items() for part in (f"--{name}", value)))
        assert exit.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    before = sorted(tmp_path.iterdir())
    missing = {"data": tmp_path / "none.yaml"}
    assert error_line("extract_audio_codes.py", **missing).endswith("none.yaml: no such file")
    (tmp_path / "codes").mkdir()
    for codes in ("codes", "kodes"):
        line = error_line("inspect_data.py", tokenizer=TINY_TOKENIZER, codes=tmp_path / codes)
        assert re.search(rf"no .*{codes}/\S+\.sqlite; run tools/extract_audio_codes\.py --codes .*{codes}$", line)
    (tmp_path / "codes").rmdir()
    assert sorted(tmp_path.iterdir()) == before

"""Readers of the codes of two tokenizers: one whose codes tell the phones, and one whose codes do not."""

import json

import numpy as np
import pytest
import soundfile
import torch

from tools.codec import code_reading, compare_codes

RATE, NUM_PHONES, SECONDS_PER_PHONE, LOWEST = 16000, 4, 0.24, 200  # three codes each; Hz


class TonesTokenizer:
    """Three codes per tone, which tell its pitch or are always the same."""

    vocab_size, frame_rate = 16, 12.5

    def __init__(self, tells: bool):
        self.tells, self.fingerprint = tells, f"tones-{tells}"

    def encode(self, wave, rate):
        size = round(rate * SECONDS_PER_PHONE)
        pitches = torch.fft.rfft(wave.reshape(-1, size)).abs().argmax(1) * (rate / size) / LOWEST
        return (pitches.round().long() if self.tells else pitches.long() * 0).repeat_interleave(3).tolist()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sequences of tones of four pitches, each of which is a phone, in two voices."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    time = np.arange(int(SECONDS_PER_PHONE * RATE)) / RATE
    rows = []
    for number in range(60):
        phones = rng.integers(NUM_PHONES, size=6)
        wave = np.concatenate([0.3 * np.sin(2 * np.pi * LOWEST * (phone + 1) * time) for phone in phones])
        soundfile.write(folder / f"{number}.wav", wave, RATE)
        row = {"audio": f"{number}.wav", "text": "tones", "voice": "main" if number % 2 else "other"}
        rows.append(row | {"phones": [str(phone) for phone in phones]})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_codes_that_tell_phones_apart_are_read_with_fewer_errors(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(code_reading, "get_audio_tokenizer", lambda _, name, device: TonesTokenizer(name == "tells"))
    flags = f"--corpus {corpus} --voice main --output {tmp_path} --steps 150 --warmup 5 --lr 3e-3 --held-out 8"
    flags = [*flags.split(), "--batch-seconds", "20", "--device", "cpu", "--tokenizers", "a=tells", "b=not"]
    compare_codes.main(flags)
    results = json.loads((tmp_path / "phones.json").read_text())
    assert results.keys() == {"a", "b"} and results["a"].keys() == {"phone_error_main", "phone_error_other"}
    assert max(results["a"].values()) < 0.4 < 0.6 < min(results["b"].values())
    assert "b: phone_error_main" in capsys.readouterr().out

    monkeypatch.setattr(code_reading.CodeReading, "forward", None)  # nothing is left to train
    compare_codes.main(flags)
    assert json.loads((tmp_path / "phones.json").read_text()) == results

    with pytest.raises(SystemExit):
        compare_codes.main([*flags[:-1], "b=tells"])  # another tokenizer under the name of one that is done
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("compare_codes: ") and "tokenizer" in error


@pytest.mark.parametrize("tokenizers", [["a"], ["a=x", "a=y"], ["=x"]])
def test_tokenizers_have_names_of_their_own(tokenizers, capsys):
    with pytest.raises(SystemExit):
        compare_codes.main(["--corpus", "c", "--voice", "v", "--output", "o", "--tokenizers", *tokenizers])
    assert "--tokenizers must be NAME=DIR" in capsys.readouterr().err

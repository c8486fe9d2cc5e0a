"""The benchmark of a running server: the times that a client sees, as a table and as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from serve.toy_server import serve
from toy_speech_lm import load_toy

from tools import benchmark_sts
from tools.common.server_latency import RATE, speech_length

SPEECH = Path(__file__).parents[1] / "assets" / "speech_tokenizer" / "vq_wav" / "speech_short.wav"


@pytest.fixture(scope="module")
def speech_lm(toy_folders):
    return load_toy(toy_folders)


def write_question(path):
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(path, np.concatenate([samples[:rate], np.zeros(rate)]), rate)


def test_the_times_of_a_client_add_up(speech_lm, tmp_path, capfd):
    write_question(tmp_path / "question.wav")
    (tmp_path / "token").write_text("secret\n")
    options = ["--recordings", tmp_path / "question.wav", "--token-file", tmp_path / "token"]
    with serve(speech_lm, token="secret") as server:
        options += ["--server", f"{server.url}/", "--turns", 3, "--output", tmp_path / "out"]
        benchmark_sts.main(list(map(str, options)))
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert (report["model"], report["num_turns"], report["recordings"]) == ("toy", 3, ["question.wav"])
    assert len(report["turns"]) == 3 and report["num_without_sound"] == report["turns"].count(None) < 3
    for turn in filter(None, report["turns"]):
        parts = [turn[f"{name}_ms"] for name in ("detection", "encoder", "model", "decoder", "rest")]
        assert turn["total_ms"] == pytest.approx(sum(parts) - turn["early_ms"]) and turn["real_time_factor"] > 0
        assert parts[0] > 300 and min(parts[1:4]) >= 0  # the silence that the server waits for is 400 ms
    metrics = report["metrics"]
    assert all(found["median"] <= found["p90"] for found in metrics.values()) and len(metrics) == 8
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"toy at {server.url}, 3 turns:" and lines[2].startswith("first sound, ms")
    assert int(lines[2].split()[-2]) == round(metrics["total_ms"]["median"])


def test_the_quiet_end_of_a_recording_is_no_speech():
    recording = np.concatenate([np.ones(RATE), 0.001 * np.ones(RATE)])
    assert speech_length(recording) == RATE and speech_length(np.ones(RATE + 5)) == RATE + 320


@pytest.mark.parametrize(
    "options, message",
    [
        (["--modes", "boost"], "--server measures a server as it runs; leave out --modes"),
        (["--turns", "0"], "must be at least 1, got 0"),
        (["--recordings", "nothing.wav"], "nothing.wav: no such file"),
        ([], "Connection refused"),
    ],
)
def test_wrong_options_get_one_line(tmp_path, capfd, options, message):
    with pytest.raises(SystemExit) as ended:
        benchmark_sts.main(["--server", "http://localhost:9", "--output", str(tmp_path), *options])
    errors = capfd.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1 and message in errors

"""The script of all benchmarks: clear errors, and its variables become flags; run whole with -m slow."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_corpus import SENTENCES, make_toy_corpus

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "deepspeed" / "evaluate_sts.sh"
NEEDED = {"MODEL_NAME_OR_PATH": "model", "AUDIO_TOKENIZER_PATH": "embedded", "OUTPUT_DIR": "out", "DATA_PATH": "data"}


def call(*flags: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
    command = ["bash", str(SCRIPT), *flags]
    return subprocess.run(command, env=kept | variables, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("variable", NEEDED)
def test_a_variable_that_is_not_set_is_one_clear_line(variable):
    result = call(**{name: value for name, value in NEEDED.items() if name != variable})
    assert result.returncode == 2
    assert result.stderr.startswith(f"evaluate_sts.sh: set {variable} to ") and result.stderr.count("\n") == 1


def test_variables_become_flags_that_the_program_accepts(tmp_path):
    """With a torchrun that only records its arguments; relative paths count from the current folder."""
    from evaluation.run import parse_arguments

    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f'#!/usr/bin/env bash\nprintf "%q " "$PWD" "$@" > {tmp_path}/call\n')
    torchrun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    more = {"SUITE": "demo asr", "CORPUS": "a corpus", "MODES": "vanilla boost", "JUDGES": "en=whisper:tiny"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.json").write_text("{}")
    flags = ["--limit", "3", "--against", "other"]
    result = call(*flags, cwd=tmp_path, PATH=path, NPROC_PER_NODE="2", EXTRA_ARGS="--seed 7", **NEEDED, **more)
    assert result.returncode == 0, result.stderr
    folder, *words = shlex.split((tmp_path / "call").read_text())
    assert folder == str(ROOT)
    program = words.index("evaluation.run")
    assert words[:program] == ["--standalone", "--nproc_per_node", "2", "-m"]
    options = parse_arguments(words[program + 1 :])
    assert (options.suite, options.modes) == (["demo", "asr"], ["vanilla", "boost"])
    assert (options.model, options.output, options.data) == ("model", tmp_path / "out", tmp_path / "data")
    assert (options.corpus, options.judge["en"]) == (tmp_path / "a corpus", "whisper:tiny")
    assert options.against == tmp_path / "other"
    assert (options.limit, options.seed, options.audio_tokenizer_path) == ({"every": 3}, 7, None)


@pytest.mark.slow
def test_two_processes_are_killed_and_continue(toy_folders, tmp_path):
    """Recognition only, which needs no judge."""
    variables = os.environ | {
        "MODEL_NAME_OR_PATH": str(toy_folders.model),
        "AUDIO_TOKENIZER_PATH": str(toy_folders.audio_tokenizer),
        "AUDIO_DECODER_PATH": str(toy_folders.audio_decoder),
        "OUTPUT_DIR": str(tmp_path / "out"),
        "CORPUS": str(make_toy_corpus(tmp_path / "corpus")),
        "SUITE": "demo-asr",
        "NPROC_PER_NODE": "2",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["bash", str(SCRIPT), "--batch-size", "1", "--max-new-tokens", "24"]
    answers = tmp_path / "out" / "boost" / "demo-asr"
    first = subprocess.Popen(command, env=variables, cwd=tmp_path, start_new_session=True)
    while first.poll() is None and not list(answers.glob("answers-*.jsonl")):
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run(command, env=variables, cwd=tmp_path, check=True, timeout=500)
    lines = [line for path in answers.glob("answers-*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == len(SENTENCES)
    assert f"| demo-asr | boost | {len(SENTENCES)} |" in (tmp_path / "out" / "results.md").read_text()

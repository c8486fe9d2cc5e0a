"""Suites on a toy model: run whole, stopped and continued, with broken samples, with sets that fail or are missing."""

import json
from pathlib import Path

import pytest
from toy_corpus import SENTENCES, LengthJudge, make_toy_corpus

from evaluation import run
from evaluation.judges import JUDGES


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_toy_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())


def arguments(toy_folders, corpus: Path, output: Path, *more: str, suite: str = "demo") -> list[str]:
    options = {
        "suite": suite,
        "model": toy_folders.model,
        "corpus": corpus,
        "output": output,
        "audio-tokenizer-path": toy_folders.audio_tokenizer,
        "audio-decoder-path": toy_folders.audio_decoder,
        "judge": "en=length",
        "batch-size": 2,
        "max-new-tokens": 24,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)] + list(more)


def results(output: Path) -> dict[tuple[str, str], dict]:
    content = json.loads((output / "results.json").read_text())
    return {(row["benchmark"], row["mode"]): row for row in content["results"]}


def test_the_demo_suite_runs_whole(toy_folders, corpus, tmp_path):
    assert run.main(arguments(toy_folders, corpus, tmp_path, "--modes", "vanilla", "boost")) == 0
    found = results(tmp_path)
    assert {name for name, _ in found} == {"demo-asr", "demo-tts", "demo-qa", "demo-qa-text"}
    assert all(row["status"] == "done" for row in found.values())
    assert found["demo-asr", "boost"]["num_samples"] == len(SENTENCES)
    page = (tmp_path / "results.html").read_text()
    assert "http" not in page and page.count("data:audio/mpeg") > 3 and "data:image/png" in page

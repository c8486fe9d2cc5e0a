"""Quality over speed by acceptance, on a toy model: evaluated once, reported with intervals, continued when stopped."""

import json
from pathlib import Path

import pytest
from toy_corpus import LengthJudge, make_toy_corpus

from evaluation.judges import JUDGES
from tools.demo import acceptance
from tools.demo.outcomes import Outcomes
from vita_audio.inference.pipeline import SpeechLM

TITLES = {"Recognition: errors", "Synthesis: errors heard", "Spoken questions: right, S→T"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_toy_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())


def flags(toy_folders, corpus: Path, output: Path, *more: str) -> list[str]:
    given = ["--model", toy_folders.model, "--corpus", corpus, "--output", output, "--judge", "length"]
    given += ["--audio-tokenizer-path", toy_folders.audio_tokenizer, "--audio-decoder-path", toy_folders.audio_decoder]
    return [*map(str, given), "--acceptances", "0", "0.2", "1", *more]


def test_each_acceptance_is_compared_with_vanilla(toy_folders, corpus, tmp_path, monkeypatch, capsys):
    acceptance.main(flags(toy_folders, corpus, tmp_path))
    printed = capsys.readouterr().out
    committed, some, exact, vanilla = json.loads((tmp_path / "acceptance.json").read_text())["settings"]
    assert [row["acceptance"] for row in (committed, some, exact, vanilla)] == [0, 0.2, 1, None]
    assert {row["mode"] for row in (committed, some, exact)} == {"boost"} and vanilla["mode"] == "vanilla"
    for row in (committed, some, exact, vanilla):
        assert row["num_answers"] == 8 and set(row["figures"]) > TITLES
        assert list(row["tokens_per_pass_by_benchmark"]) == ["demo-asr", "demo-tts", "demo-qa"]
    assert exact["same_as_vanilla"]["value"] == 1 > committed["same_as_vanilla"]["value"]
    assert exact["figures"] == vanilla["figures"]
    speeds = [row["tokens_per_pass"]["value"] for row in (committed, some, exact, vanilla)]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] > speeds[1] and speeds[-1] == 1
    assert committed["acceptance_by_depth"] == vanilla["acceptance_by_depth"] == {}
    assert 0 < some["acceptance_by_depth"]["1"]["value"] <= 1
    markdown = (tmp_path / "acceptance.md").read_text()
    assert markdown in printed and "| vanilla | 1 (1 to 1) |" in markdown and "| acceptance | depth 1 |" in markdown
    assert (tmp_path / "acceptance.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "acceptance_0.2" / "acceptance.png").exists()
    page = (tmp_path / "acceptance_0.2" / "results.md").read_text()
    assert "## Predictions that the backbone accepted" in page and "![acceptance by depth](acceptance.png)" in page

    monkeypatch.setattr(SpeechLM, "respond_batch", lambda *arguments, **options: pytest.fail("answered again"))
    acceptance.main(flags(toy_folders, corpus, tmp_path))
    assert json.loads((tmp_path / "acceptance.json").read_text())["settings"][1] == some


def test_answers_that_failed_are_not_the_same():
    digests = {("demo-asr", "a"): "x", ("demo-asr", "b"): None}
    setting = acceptance.Setting("boost", 1.0, Outcomes([]), digests)
    assert setting.same_as(setting).value == 0.5


def test_a_mode_without_modules_is_refused(toy_folders, corpus, tmp_path):
    with pytest.raises(ValueError, match="--mode must have MTP steps, such as boost, got vanilla"):
        acceptance.main(flags(toy_folders, corpus, tmp_path, "--mode", "vanilla"))


def test_an_evaluation_that_fails_is_named(toy_folders, corpus, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no memory")

    monkeypatch.setattr(SpeechLM, "respond_batch", fail)
    with pytest.raises(ValueError, match="vanilla: demo-asr is failed .all 3 samples failed"):
        acceptance.main(flags(toy_folders, corpus, tmp_path))

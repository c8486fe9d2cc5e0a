"""Data in which something is missing or comes twice: an error that names it, or wrong, never a better score."""

import json

import pytest
from test_run import results
from toy_corpus import SENTENCES, LengthJudge, arguments, make_toy_corpus

from evaluation import run
from evaluation.judges import JUDGES
from evaluation.metrics.ours import error_counts
from evaluation.metrics.score import Score
from evaluation.metrics.significance import compare, confidence_interval
from evaluation.run_folder import RowFile
from evaluation.suites import BENCHMARKS


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())


@pytest.fixture
def corpus(tmp_path):
    return make_toy_corpus(tmp_path / "corpus")


def test_ids_that_come_twice_are_named(corpus, tmp_path, toy_folders):
    path = corpus / "heldout_asr.jsonl"
    path.write_text(path.read_text().replace("asr-2", "asr-0"))
    with pytest.raises(ValueError, match="ids must differ within .*heldout_asr.jsonl, got more than one of asr-0"):
        BENCHMARKS["demo-asr"].items(corpus)
    line = "name|what the voice says|voice.wav|what to say\n"
    (corpus / "seedtts_testset" / "en").mkdir(parents=True)
    (corpus / "seedtts_testset" / "en" / "meta.lst").write_text(line * 2)
    with pytest.raises(ValueError, match="ids must differ within .*meta.lst, got more than one of name"):
        BENCHMARKS["seedtts-en"].items(corpus)
    assert run.main(arguments(toy_folders, corpus, tmp_path / "out", suite="demo-asr")) == 1
    (row,) = results(tmp_path / "out").values()
    assert row["status"] == "failed" and "more than one of" in row["note"] and row["figures"] == {}


def test_a_set_without_references_has_no_figures(corpus, tmp_path, toy_folders):
    rows = [json.loads(line) for line in (corpus / "heldout_asr.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"reference": ""}) + "\n" for row in rows]
    (corpus / "heldout_asr.jsonl").write_text("".join(lines))
    assert run.main(arguments(toy_folders, corpus, tmp_path / "out", suite="demo-asr")) == 1
    (row,) = results(tmp_path / "out").values()
    assert row["status"] == "failed" and "must have a reference with words" in row["note"] and row["figures"] == {}


def test_questions_whose_audio_is_missing_count_as_wrong(corpus, tmp_path, toy_folders):
    """As if nothing had been said to them, whatever is said to the others."""
    options = ("--modes", "boost")
    assert run.main(arguments(toy_folders, corpus, tmp_path / "whole", *options, suite="demo-asr")) == 0
    said = RowFile(tmp_path / "whole" / "boost" / "demo-asr", "answers").read()
    for index in (0, 2):
        (corpus / "audio" / f"heldout{index}.flac").unlink()
    assert run.main(arguments(toy_folders, corpus, tmp_path / "half", *options, suite="demo-asr")) == 0
    row = results(tmp_path / "half")["demo-asr", "boost"]
    assert row["num_samples"] == 3 and row["num_failed_samples"] == 2
    assert row["note"] == "2 samples failed and count as wrong"
    words = [len(text.split()) for text in SENTENCES]
    errors, _ = error_counts(SENTENCES[1], said["asr-1"]["text"])
    assert row["figures"]["wer"]["value"] == pytest.approx((words[0] + errors + words[2]) / sum(words))


def test_answers_whose_wave_is_gone_are_heard_as_nothing(corpus, tmp_path, toy_folders):
    out, options = tmp_path / "out", ("--modes", "boost")
    assert run.main(arguments(toy_folders, corpus, out, *options, suite="demo-tts")) == 0
    folder = out / "boost" / "demo-tts"
    for path in folder.glob("transcripts-*.jsonl"):
        path.unlink()
    gone = sorted(name for name, row in RowFile(folder, "answers").read().items() if row["wav"])[::2]
    assert gone
    for name in gone:
        (folder / "audio" / f"{name}.wav").unlink()
    assert run.main(arguments(toy_folders, corpus, out, *options, suite="demo-tts")) == 0
    heard = RowFile(folder, "transcripts").read()
    assert [name for name, row in heard.items() if "error" in row] == gone
    assert all(heard[name]["transcript"] == "" for name in gone)
    row = results(out)["demo-tts", "boost"]
    assert row["num_failed_samples"] == len(gone) and row["num_samples"] == len(SENTENCES)


@pytest.mark.filterwarnings("error")
def test_a_single_sample_has_an_interval_and_is_compared():
    score, other = Score([1.0], [4.0], ("a",)), Score([2.0], [4.0], ("a",))
    assert (score.value, *confidence_interval(score)) == (0.25, 0.25, 0.25)
    assert compare(score, other).difference == -0.25
    assert confidence_interval(Score([1.0, 0.0], [4.0, 0.0])) == (0.25, 0.25)


def test_answers_to_other_data_are_neither_kept_nor_compared(corpus, tmp_path, toy_folders):
    """Of the same ids, as a corpus has that was made anew."""
    path, options = corpus / "heldout_asr.jsonl", ("--modes", "boost")
    assert run.main(arguments(toy_folders, corpus, tmp_path / "one", *options, suite="demo-asr")) == 0
    path.write_text(path.read_text().replace(SENTENCES[1], "seven"))
    with pytest.raises(ValueError, match=r"was made with other data \(demo-asr: asr-1\); choose another --output"):
        run.main(arguments(toy_folders, corpus, tmp_path / "one", *options, suite="demo-asr"))
    options = (*options, "--against", tmp_path / "one")
    assert run.main(arguments(toy_folders, corpus, tmp_path / "two", *options, suite="demo-asr")) == 0
    assert results(tmp_path / "two")["demo-asr", "boost"]["note"].endswith("which had other data: asr-1")
    assert json.loads((tmp_path / "two" / "results.json").read_text())["comparisons"] == []


def test_a_set_of_an_unforeseen_form_does_not_stop_the_others(corpus, tmp_path, toy_folders):
    rows = [json.loads(line) for line in (corpus / "heldout_tts.jsonl").read_text().splitlines()]
    (corpus / "heldout_tts.jsonl").write_text(json.dumps(rows[0] | {"audio": 7}) + "\n")
    options = arguments(toy_folders, corpus, tmp_path / "out", "--modes", "boost")
    options[1:2] = ["demo-tts", "demo-asr"]
    assert run.main(options) == 1
    assert {name: row["status"] for (name, _), row in results(tmp_path / "out").items()} == {
        "demo-tts": "failed",
        "demo-asr": "done",
    }

"""An evaluation of several adapters: each in a folder of its own, with the results of an evaluation of it alone."""

import json

import pytest
from toy_adapters import save_toy_adapter
from toy_corpus import LengthJudge, arguments, make_toy_corpus

from evaluation import run
from evaluation.judges import JUDGES


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_toy_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def adapters(toy_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_toy_adapter(toy_folders, folder / name, seed=seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())


def results_of(output):
    rows = json.loads((output / "results.json").read_text())["results"]
    return {(row["benchmark"], row["mode"]): (row["status"], row["figures"], row["num_samples"]) for row in rows}


def test_each_adapter_is_evaluated_as_if_alone_and_against_the_base(toy_folders, corpus, adapters, tmp_path, capsys):
    base, output = toy_folders.model.name, tmp_path / "several"

    def evaluate(output, *flags):
        assert run.main(arguments(toy_folders, corpus, output, "--modes", "boost", *flags, suite="demo-asr")) == 0

    evaluate(output, "--adapter", f"one={adapters['one']}", adapters["two"])
    assert {path.name for path in output.iterdir()} == {base, "one", "two"}
    found = {name: results_of(output / name) for name in (base, "one", "two")}
    evaluate(tmp_path / "alone", "--adapter", adapters["two"])
    assert results_of(tmp_path / "alone") == found["two"]
    assert found["one"] != found[base] != found["two"] != found["one"]
    compared = json.loads((output / "two" / "results.json").read_text())["comparisons"]
    assert [row["against"] for row in compared] == [f"boost of {toy_folders.model}"]


def test_a_finished_evaluation_of_several_loads_nothing(toy_folders, corpus, adapters, tmp_path, monkeypatch):
    flags = ("--modes", "vanilla", "--limit", "1", "--adapter", *adapters.values())
    options = arguments(toy_folders, corpus, tmp_path, *flags, suite="demo-asr")
    assert run.main(options) == 0
    monkeypatch.setattr(run, "load_models", lambda *arguments: pytest.fail("nothing is left to answer"))
    assert run.main(options) == 0


@pytest.mark.parametrize("name", ["one", "model"])
def test_names_must_differ(toy_folders, corpus, adapters, tmp_path, name):
    flags = ("--adapter", f"one={adapters['one']}", f"{name}={adapters['two']}")
    assert toy_folders.model.name == "model"
    with pytest.raises(ValueError, match=f"must differ from each other and from the base's, got {name} twice"):
        run.main(arguments(toy_folders, corpus, tmp_path, *flags, suite="demo-asr"))


def test_a_check_finds_names_that_do_not_differ_and_missing_adapters(toy_folders, corpus, adapters, tmp_path):
    def check(*values):
        return run.main(arguments(toy_folders, corpus, tmp_path, "--check", "--adapter", *values, suite="demo-asr"))

    assert check(adapters["one"], adapters["two"]) == 0
    with pytest.raises(ValueError, match="got one twice"):
        check(adapters["one"], f"one={adapters['two']}")
    with pytest.raises(FileNotFoundError, match="no folder .*missing"):
        check(adapters["one"], tmp_path / "missing")

"""Figures of the public evaluation programs, exactly: the golden counts, rates and decisions."""

import json
from pathlib import Path

import pytest

from evaluation.compute_wer import align, count_edits
from evaluation.metrics.public import (
    contains_pieces,
    libritts_error_rate,
    libritts_text,
    reference_containment,
    reference_error_rate,
    seedtts_error_rate,
    seedtts_rate,
    tokenize,
)

ASSETS = Path(__file__).parents[2] / "assets" / "evaluation"


def golden(name: str) -> dict:
    return json.loads((ASSETS / name).read_text(encoding="utf-8"))


def options_of(run: dict) -> dict:
    return {
        "unit": "character" if "cer" in run["script"] else "word",
        "split_scripts": "--char=1" in run["opts"],
        "case_sensitive": "--cs=1" in run["opts"],
    }


RUNS = golden("wer_cer.json")["runs"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: " ".join((run["script"], *run["opts"])))
def test_counts_of_each_text_and_of_all_are_those_of_the_programs(run):
    pairs = {pair["id"]: pair for pair in golden("wer_cer.json")["pairs"]}
    for expected in run["utts"]:
        pair = pairs[expected["id"]]
        tokens = (list(tokenize(pair[side], **options_of(run))) for side in ("ref", "hyp"))
        counts = count_edits(align(*tokens))
        kinds = (counts.correct, counts.substituted, counts.deleted, counts.inserted)
        assert (counts.length, *kinds) == tuple(expected[kind] for kind in "NCSDI"), pair
        assert counts.percent == pytest.approx(expected["rate"], abs=0.005)  # printed with two digits
    texts = ([pair[side] for pair in pairs.values()] for side in ("ref", "hyp"))
    score, overall = reference_error_rate(*texts, **options_of(run)), run["overall"]
    assert score.denominators.sum() == overall["N"]
    assert score.numerators.sum() == sum(overall[kind] for kind in "SDI")
    assert 100 * score.value == pytest.approx(overall["rate"], abs=0.005)
    assert len(run["utts"]) in (0, len(pairs))  # some options print the sum only


def test_the_golden_runs_are_all_there():
    assert len(RUNS) == 10 and sum(len(run["utts"]) for run in RUNS) == 8 * 36


def test_units_are_named():
    with pytest.raises(ValueError, match="one of word, character, got 'phone'"):
        list(tokenize("one", unit="phone"))


def test_containment_decides_as_the_program():
    pytest.importorskip("word2number")
    pairs = golden("acc_of_contain.json")["pairs"]
    for pair in pairs:
        assert contains_pieces(pair["pred"], pair["gt"]) == pair["correct"], pair
    score = reference_containment([pair["pred"] for pair in pairs], [pair["gt"] for pair in pairs])
    assert 100 * score.value == pytest.approx(65.51724137931035, abs=1e-9)


STOPPING = [case for case in golden("acc_of_contain.json")["special_inputs"] if case["returncode"]]


@pytest.mark.parametrize("case", STOPPING, ids=lambda case: case["name"])
def test_input_that_stops_the_containment_program_is_a_clear_error_here(case):
    pytest.importorskip("word2number")
    texts, answers = ([item[place] for item in case["data"]] for place in (0, 1))
    with pytest.raises(ValueError, match=r"got (none|None|7|\[)"):
        reference_containment(texts, answers)


@pytest.mark.parametrize("part", ["pairs", "empty_reference_jiwer4"])
def test_seedtts_rate_of_each_text(part):
    for pair in golden("seedtts_wer.json")[part]:
        rate = seedtts_rate(pair["ref"], pair["hyp"], pair.get("lang", "en"))
        assert rate == pytest.approx(pair["wer"], abs=1e-12), pair


@pytest.mark.parametrize("language", ["en", "zh"])
def test_seedtts_takes_the_mean_of_the_texts_rates(language):
    if language == "zh":
        pytest.importorskip("zhconv")
    expected = golden("seedtts_wer.json")
    pairs = [pair for pair in expected["pairs"] if pair["lang"] == language]
    score = seedtts_error_rate([pair["ref"] for pair in pairs], [pair["hyp"] for pair in pairs], language)
    assert round(100 * score.value, 3) == expected[f"mean_wer_percent_{language}"]


def test_chinese_seedtts_hypotheses_become_simplified():
    pytest.importorskip("zhconv")
    assert seedtts_error_rate(["我爱汉字"], ["我愛漢字"], "zh").value == 0


def test_seedtts_knows_two_languages():
    with pytest.raises(ValueError, match="en or zh, got 'fr'"):
        seedtts_rate("oui", "oui", "fr")


@pytest.mark.parametrize("case", golden("libritts_text_normalization.json")["cases"], ids=lambda case: case["text"])
def test_libritts_texts_as_they_are_compared(case):
    pytest.importorskip("wetext")
    assert libritts_text(case["text"]) == case["after_nonword_to_space"]


def test_libritts_rate_is_of_spelled_out_words():
    pytest.importorskip("wetext")
    assert libritts_error_rate(["It was 50% off."], ["it was fifty percent OFF"]).value == 0
    assert libritts_error_rate(["room 42"], ["room forty"]).value == pytest.approx(1 / 3)

"""Lists and files of texts in which something is missing: a clear error or counted as wrong, never a better score."""

import sys
from pathlib import Path

import pytest

from evaluation.metrics.ours import corrected_error_rate
from evaluation.metrics.public import reference_containment, reference_error_rate, seedtts_error_rate
from evaluation.metrics.score import pair_texts, read_texts

ROOT = Path(__file__).parents[3]


def seedtts_english(references, hypotheses):
    return seedtts_error_rate(references, hypotheses, "en")


RATES = [reference_error_rate, corrected_error_rate, seedtts_english]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "references, hypotheses, message",
    [
        (["one", "two"], ["one"], "every reference needs its hypothesis, got 2 and 1"),
        (["one"], ["one", "two"], "every reference needs its hypothesis, got 1 and 2"),
        (["one", "two"], ["one", None], "each hypothesis must be a text .*, got None at place 1"),
        ([["one"]], ["one"], "each reference must be a text .* at place 0"),
        ([], [], "needs samples, got none"),
    ],
)
def test_lists_that_do_not_fit_together_are_refused(rate, references, hypotheses, message):
    with pytest.raises(ValueError, match=message):
        rate(references, hypotheses)


@pytest.mark.parametrize("rate", RATES[:2])
def test_references_without_words_are_refused_if_all_are_and_else_count_what_was_said(rate):
    with pytest.raises(ValueError, match="are all references empty"):
        rate(["", ""], ["one", ""])
    assert rate(["", "one"], ["two", "one"]).value == 1
    assert rate(["one", "two"], ["one", ""]).value == 0.5


@pytest.mark.parametrize(
    "texts, answers, message",
    [
        (["one", "two"], ["one"], "every text needs its answer, got 2 and 1"),
        (["one", None], ["one", "one"], "must be a text .*, got None at place 1"),
        (["one"], [1], "a text or a list of texts, got 1 at place 0"),
        (["one"], [["one", 1]], "a text or a list of texts, got .* at place 0"),
    ],
)
def test_answers_that_do_not_fit_are_refused(texts, answers, message):
    with pytest.raises(ValueError, match=message):
        reference_containment(texts, answers)


def test_texts_are_paired_by_id_in_the_order_of_the_references(tmp_path):
    (tmp_path / "ref").write_text("b two  words\na one\nc\n", encoding="utf-8")
    (tmp_path / "hyp").write_text("a 1\nb 2\n\nc\t3 \n", encoding="utf-8")
    paired = pair_texts(read_texts(tmp_path / "ref"), read_texts(tmp_path / "hyp"))
    assert paired == (["b", "a", "c"], ["two  words", "one", ""], ["2", "1", "3 "])


def test_a_byte_order_mark_belongs_to_no_id(tmp_path):
    (tmp_path / "hyp").write_bytes("a one\nb two\n".encode("utf-8-sig"))
    assert read_texts(tmp_path / "hyp") == {"a": "one", "b": "two"}


def test_only_some_of_many_ids_are_named():
    references = {str(number): "" for number in range(8)}
    with pytest.raises(ValueError, match="got none for 0, 1, 2, 3, 4 and 3 more; use an empty text for"):
        pair_texts(references, {})


def test_no_module_hides_one_of_the_standard_library():
    """`python evaluation/NAME.py` puts its folder before the standard library."""
    names = {path.stem for folder in ("evaluation", "tools") for path in (ROOT / folder).glob("*.py")}
    assert names & set(sys.stdlib_module_names) == set()

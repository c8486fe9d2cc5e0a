"""Layout of answers and order of decoding steps, against the reference and by rule."""

import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from vita_audio.interleave import BACKBONE, MODES, InterleavePlan

CASES = json.loads((Path(__file__).parent / "assets/data/text_audio_interval.json").read_text(encoding="utf-8"))[
    "cases"
]
BEGIN, END = 901, 902
# The reference drops the text after the first chunk when there is no audio.
DROPS_TEXT = ("empty_audio_long_text", "text7_audio0")
# The reference accepts these ratios; here the numbers come in pairs, text at least 1, audio at least 3 in data.
REFUSED = {"odd_length_ratio", "leading_zero_then_positive_text", "leading_audio_two"}


def split_at_audio(case):
    ids = case["input_ids"]
    begin, end = ids.index(case["audio_start_id"]), ids.index(case["audio_end_id"])
    return ids[:begin] + ids[end + 1 :], ids[begin + 1 : end]


def with_output(case):
    return "output" in case and case["audio_start_id"] in case["input_ids"]


@pytest.mark.parametrize(
    "case", [c for c in CASES if with_output(c) and c["name"] not in REFUSED], ids=lambda case: case["name"]
)
def test_interleave_equals_reference(case):
    text, audio = split_at_audio(case)
    markers = case["audio_start_id"], case["audio_end_id"]
    result = InterleavePlan.parse(case["ratio"] or "boost").interleave(text, audio, *markers)
    if case["name"].startswith(DROPS_TEXT):
        assert result == [*text, *markers]
    else:
        assert result == case["output"]


@pytest.mark.parametrize("case", [c for c in CASES if c.get("hangs") or c["name"] in REFUSED], ids=lambda c: c["name"])
def test_ratio_that_cannot_lay_out_data_is_refused(case):
    text, audio = split_at_audio(case)
    with pytest.raises(ValueError, match="ratio must have|every audio number must be at least 3"):
        InterleavePlan(tuple(case["ratio"])).interleave(text, audio, BEGIN, END)


@pytest.mark.parametrize("ratio", [(), (1,), (1, 10, 4), (0, 10), (1, -1), (1.0, 10), (True, 10), ("1", 10), None, 5])
def test_wrong_ratio_is_one_clear_error(ratio):
    message = f"ratio must have an even number of integers .*, got {re.escape(repr(ratio))};"
    for make in (InterleavePlan, InterleavePlan.parse):
        with pytest.raises(ValueError, match=message):
            make(ratio)


@pytest.mark.parametrize("ratio", [np.array([1, 10, 4, 10]), torch.tensor([1, 10, 4, 10]), range(1, 5)])
def test_integers_of_other_libraries_are_integers(ratio):
    plan = InterleavePlan.parse(ratio)
    assert plan == InterleavePlan(tuple(map(int, ratio)))
    assert {type(number) for number in plan.ratio} == {int}


def test_parse_knows_names_and_numbers():
    assert InterleavePlan.parse("Boost").ratio == (1, 10, 4, 10)
    assert InterleavePlan.parse("1, 4 3,8").ratio == (1, 4, 3, 8)
    assert InterleavePlan.parse([8192, 0]) == InterleavePlan.parse("vanilla")
    assert [str(InterleavePlan(ratio)) for ratio in MODES.values()] == list(MODES)
    assert str(InterleavePlan((1, 4, 3, 8))) == "1,4,3,8"
    with pytest.raises(ValueError, match="one of vanilla, balance, boost, turbo or integers, got 'bost'"):
        InterleavePlan.parse("bost")
    with pytest.raises(ValueError, match=r"ratio must have an even number of integers .*, got \(1, 10, 4\)"):
        InterleavePlan.parse("1,10,4")


def test_nothing_is_lost_or_added():
    for num_text in range(0, 30, 3):
        for num_audio in range(0, 60, 7):
            text, audio = list(range(num_text)), list(range(100, 100 + num_audio))
            result = InterleavePlan.parse("balance").interleave(text, audio, BEGIN, END)
            assert [i for i in result if i < 100] == text
            assert [i for i in result if 100 <= i < BEGIN] == audio
            assert result.count(BEGIN) == result.count(END) >= 1


def test_steps_follow_the_ratio_and_repeat_the_last_pair():
    steps = InterleavePlan((1, 2, 3, 1)).steps()
    assert list(islice(steps, 11)) == [BACKBONE, 1, 2, *[BACKBONE] * 3, 1, *[BACKBONE] * 3, 1]
    assert set(islice(InterleavePlan.parse("vanilla").steps(), 9000)) == {BACKBONE}


@pytest.mark.parametrize(
    ("num_modules", "expected"),
    [
        (0, [BACKBONE] * 8),
        (1, [BACKBONE, 1, BACKBONE, 1, BACKBONE, 1, BACKBONE, 1]),
        (2, [BACKBONE, 1, 2, BACKBONE, 1, 2, BACKBONE, 1]),
        (10, [BACKBONE, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_surplus_mtp_step_is_a_backbone_step(num_modules, expected):
    assert list(islice(InterleavePlan.parse("turbo").steps(num_modules), 8)) == expected

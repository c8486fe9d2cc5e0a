"""Every form of data file that the reference reads gives the same rows here."""

import json
from pathlib import Path

import pytest

from vita_audio.data.mixture import read_samples

ASSETS = Path(__file__).parents[1] / "assets/data"
CASES = json.loads((ASSETS / "yaml_formats.json").read_text(encoding="utf-8"))["formats"]


def without_nulls(value):
    """The reference's tables have a null wherever a row lacks a key that another row has."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_rows_equal_the_reference(case):
    """In the columns that the reference keeps; it drops the others of a file whose columns differ in type."""
    problems = []
    samples = [json.loads(text) for _, text in read_samples(ASSETS / "yaml" / case["file"], problems)]
    rows = [{name: value for name, value in sample.items() if name in case["columns"]} for sample in samples]
    assert without_nulls(rows) == without_nulls(case["data"]) and problems == []

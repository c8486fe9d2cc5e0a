"""Bars of processes that work side by side."""

import pytest

from evaluation.progress import progress_bar


@pytest.mark.parametrize(("rank", "line"), [(None, 0), ("0", 0), ("2", 2)])
def test_each_process_of_a_machine_has_a_line_of_its_own(monkeypatch, capsys, rank, line):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with progress_bar(range(2), desc="work") as bar:
        assert abs(bar.pos) == line and list(bar) == [0, 1]
    assert "work: 100%" in capsys.readouterr().err

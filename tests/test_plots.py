import sys

import pytest
from PIL import Image

from vita_audio.optional import MissingPackageError
from vita_audio.plots import new_figure


def test_a_figure_has_its_size_in_inches(tmp_path):
    figure = new_figure(4, 3, layout="constrained")
    figure.subplots().plot([1, 2])
    figure.savefig(tmp_path / "plot.png", dpi=50)
    assert Image.open(tmp_path / "plot.png").size == (200, 150)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vita-audio\[plots\]'"):
        new_figure(4, 3)

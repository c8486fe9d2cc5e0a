"""Matplotlib figures that need no display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vita_audio.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make an empty figure of a size in inches; `options` are arguments of matplotlib's `Figure`.

    Raises: MissingPackageError without matplotlib.
    """
    figures = require("matplotlib.figure", purpose="a plot", install="'vita-audio[plots]'")
    return figures.Figure(figsize=(width, height), **options)

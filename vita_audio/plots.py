"""Figures for curves, reports and benchmarks; they need no display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vita_audio.optional import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make an empty figure; `savefig` writes it to a file.

    Args:
        width: Width in inches.
        height: Height in inches.
        options: More arguments of matplotlib's `Figure`, such as `layout`.
    Raises: MissingPackageError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(f"plots need matplotlib ({error}); pip install 'vita-audio[plots]'") from error
    return Figure(figsize=(width, height), **options)

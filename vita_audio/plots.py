"""Figures without a display, for curves, reports and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vita_audio.optional import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Check that plots can be drawn. Raises: MissingPackageError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"plots need matplotlib ({error}); pip install 'vita-audio[plots]'") from error


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make an empty figure, which needs no display to be saved.

    Args:
        width: Width in inches.
        height: Height in inches.
        options: More arguments of matplotlib's `Figure`, such as `layout`.
    Raises: MissingPackageError.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **options)

"""Pictures and figures of a training run, from the log of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vita_audio.training.trainer import depth_name


def draw_curves(log_history: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw loss and accuracy of every depth and the learning rates over the steps, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = training_entries(log_history)
    figure = Figure(figsize=(15, 4.5))
    FigureCanvasAgg(figure)
    loss_axis, accuracy_axis, rate_axis = figure.subplots(1, 3)
    names = depth_names(entries)
    colours = _colours(len(names))
    for name, colour in zip(names, colours, strict=True):
        _plot(loss_axis, entries, f"{name}_loss", label=name, color=colour)
        _plot(accuracy_axis, entries, f"{name}_accuracy", label=name, color=colour)
    for name in ("learning_rate", "mtp_learning_rate"):
        _plot(rate_axis, entries, name, label=name)
    for axis, text in ((loss_axis, "loss"), (accuracy_axis, "accuracy"), (rate_axis, "learning rate")):
        axis.set(title=text, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    accuracy_axis.set_ylim(0, 1)
    figure.suptitle(title)
    figure.subplots_adjust(left=0.05, right=0.98, wspace=0.18)
    figure.savefig(path, dpi=100)


def summarise(log_history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return steps, minutes, tokens, tokens per second, and the losses and accuracies of the last log entry."""
    entries = training_entries(log_history)
    num_tokens = sum(entry["num_tokens"] for entry in entries)
    minutes = entries[-1]["minutes"]
    names = depth_names(entries)
    return {
        "steps": entries[-1]["step"],
        "minutes": minutes,
        "num_tokens": num_tokens,
        "tokens_per_second": num_tokens / (60 * minutes),
        "final_loss": entries[-1]["loss"],
        "final_losses": {name: entries[-1][f"{name}_loss"] for name in names},
        "final_accuracies": {name: entries[-1][f"{name}_accuracy"] for name in names},
    }


def training_entries(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries with training losses, in order.

    Raises: ValueError if there are none.
    """
    entries = [entry for entry in log_history if "loss" in entry]
    if not entries:
        raise ValueError("the log has no training losses")
    return entries


def depth_names(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the depths in a log, the backbone first."""
    names = []
    while f"{depth_name(len(names))}_loss" in entries[-1]:
        names.append(depth_name(len(names)))
    return names


def _plot(axis: Any, entries: Sequence[dict[str, Any]], key: str, **style: Any) -> None:
    points = [(entry["step"], entry[key]) for entry in entries if key in entry]
    if points:
        axis.plot(*zip(*points, strict=True), **style)


def _colours(count: int) -> list[Any]:
    """Black for the backbone, then from dark to light."""
    from matplotlib import colormaps

    return ["black", *(colormaps["viridis"](index / max(count - 1, 1)) for index in range(count - 1))]

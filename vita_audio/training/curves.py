"""Plots and summary of a training run, from the log of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vita_audio.files.atomic import atomic_path
from vita_audio.files.checkpoint import read_json
from vita_audio.plots import new_figure
from vita_audio.training.run_folder import QUALITY_FILE
from vita_audio.training.trainer import depth_name


def read_quality(folder: str | Path) -> dict[str, Any]:
    """Return the content of quality.json, empty if no checkpoint was evaluated."""
    path = Path(folder) / QUALITY_FILE
    return read_json(path) if path.exists() else {}


def draw_run(folder: str | Path, log_history: Sequence[dict[str, Any]]) -> None:
    """Draw curves.png in a run folder: loss and accuracy of every depth, learning rates, and metrics of checkpoints.

    Raises: ValueError if the log has no training losses; MissingPackageError without matplotlib.
    """
    folder = Path(folder).absolute()
    quality = read_quality(folder).get("metrics")
    entries = training_entries(log_history)
    num_panels = 4 if quality else 3
    figure = new_figure(5 * num_panels, 4.5)
    from matplotlib import colormaps  # new_figure has checked that matplotlib is installed

    axes = figure.subplots(1, num_panels)
    loss_axis, accuracy_axis, rate_axis = axes[:3]
    names = depth_names(entries)
    num_modules = len(names) - 1
    colours = ["black", *(colormaps["viridis"](index / num_modules) for index in range(num_modules))]
    for name, colour in zip(names, colours, strict=False):  # no names before the first finite loss
        plot_entries(loss_axis, entries, f"{name}_loss", label=name, color=colour)
        plot_entries(accuracy_axis, entries, f"{name}_accuracy", label=name, color=colour)
    for name in ("learning_rate", "mtp_learning_rate"):
        plot_entries(rate_axis, entries, name, label=name)
    for axis, text in ((loss_axis, "loss"), (accuracy_axis, "accuracy"), (rate_axis, "learning rate")):
        axis.set(title=text, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    accuracy_axis.set_ylim(0, 1)
    if quality:
        _plot_quality(axes[3], quality)
    figure.suptitle(f"{folder.parent.name}/{folder.name}")
    figure.subplots_adjust(left=0.05, right=0.98, wspace=0.18)
    with atomic_path(folder / "curves.png") as partial:
        figure.savefig(partial, format="png", dpi=100)


def summarise(log_history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return steps, minutes, tokens, tokens per second, and the losses and accuracies in the last log entry."""
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
        "final_losses": {name: _last(entries, f"{name}_loss") for name in names},
        "final_accuracies": {name: _last(entries, f"{name}_accuracy") for name in names},
    }


def training_entries(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries with training losses, in order. Raises: ValueError if there are none."""
    entries = [entry for entry in log_history if "loss" in entry]
    if not entries:
        raise ValueError("the log has no training losses")
    return entries


def depth_names(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the depths in a log, the backbone first."""
    names = []
    while any(f"{depth_name(len(names))}_loss" in entry for entry in entries):
        names.append(depth_name(len(names)))
    return names


def _last(entries: Sequence[dict[str, Any]], key: str) -> float:
    return next(entry[key] for entry in reversed(entries) if key in entry)


def plot_entries(axis: Any, entries: Sequence[dict[str, Any]], key: str, **style: Any) -> None:
    """Plot a value of the log over the steps, if any entry has it."""
    points = [(entry["step"], entry[key]) for entry in entries if key in entry]
    if points:
        axis.plot(*zip(*points, strict=True), **style)


def _plot_quality(axis: Any, quality: Sequence[dict[str, Any]]) -> None:
    """Draw metrics in per cent over the steps, each with a band for its interval."""
    names = dict.fromkeys(name for row in quality for name in row if name != "step")
    for name in names:
        rows = [
            (row["step"], *(100 * row[name][key] for key in ("value", "low", "high"))) for row in quality if name in row
        ]
        steps, values, lows, highs = zip(*rows, strict=True)
        (line,) = axis.plot(steps, values, marker="o", label=name)
        axis.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.12)
    axis.set(title="quality of checkpoints, %", xlabel="step", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")

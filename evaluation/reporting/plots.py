"""Plots of reports: training losses, quality over speed, ablations, codecs, spectrograms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vita_audio.plots import new_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

LogHistory = Sequence[Mapping[str, Any]]


def draw_losses(histories: Mapping[str, LogHistory], path: Path) -> None:
    """Plot the loss over the steps in a panel for each stage: the backbone's, and the mean of the MTP modules."""
    figure, axes = _figure(len(histories), height=3.6)
    for axis, (stage, history) in zip(axes, histories.items(), strict=True):
        entries = [entry for entry in history if "loss" in entry]
        steps = [entry["step"] for entry in entries]
        backbone = [(entry["step"], entry["main_loss"]) for entry in entries if "main_loss" in entry]
        axis.plot(*zip(*backbone, strict=True), color="black", label="backbone")
        modules = [module_losses(entry) for entry in entries]
        if modules and modules[0]:
            means = [sum(values) / len(values) for values in modules]
            axis.plot(steps, means, color="tab:orange", label=f"mean of {len(modules[0])} MTP")
        axis.set(title=stage, xlabel="step", ylabel="loss", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def module_losses(entry: Mapping[str, Any]) -> list[float]:
    """Return the loss of each MTP module that a log entry has, without its parts over text and audio tokens."""
    return [value for name, value in entry.items() if re.fullmatch(r"mtp_\d+_loss", name)]


def draw_modes(modes: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Plot the errors of every task over the tokens per backbone pass, a point for each mode."""
    errors = {
        "recognition: words wrong": {mode: scores["asr_wer"] for mode, scores in modes.items()},
        "synthesis: words wrong": {mode: scores["tts_wer"] for mode, scores in modes.items()},
        "questions: text wrong": {mode: 1 - scores["qa_text_accuracy"] for mode, scores in modes.items()},
        "questions: speech wrong": {mode: 1 - scores["qa_speech_accuracy"] for mode, scores in modes.items()},
    }
    draw_errors_over_speed(modes, errors, path)


def draw_errors_over_speed(
    speeds: Mapping[str, Mapping[str, float]], errors: Mapping[str, Mapping[str, float]], target: Path | IO[bytes]
) -> None:
    """Plot errors over the tokens per backbone pass.

    Args:
        speeds: `backbone_passes_per_token` and `tokens_per_second` by mode.
        errors: The fraction that is wrong by line and mode; a line may lack some modes.
        target: File for the PNG.
    """
    ordered = sorted(speeds.items(), key=lambda item: -item[1]["backbone_passes_per_token"])
    places = {mode: 1 / speed["backbone_passes_per_token"] for mode, speed in ordered}
    figure, (axis,) = _figure(1, height=5.5, width=7.5)
    for label, values in errors.items():
        known = [mode for mode in places if mode in values]
        axis.plot([places[mode] for mode in known], [100 * values[mode] for mode in known], marker="o", label=label)
    gap = 0.06 * (max(places.values()) - min(places.values()))
    end = float("-inf")
    for mode, place in places.items():
        axis.axvline(place, color="grey", alpha=0.2)
        end = max(place, end + gap)  # modes may lie close together
        name = f"{mode}, {speeds[mode]['tokens_per_second']:.0f} tokens/s"
        top = {"xycoords": axis.get_xaxis_transform(), "arrowprops": {"arrowstyle": "-", "color": "grey"}}
        slanted = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "fontsize": "small"}
        axis.annotate(name, (place, 1), xytext=(end, 1.04), textcoords=axis.get_xaxis_transform(), **top, **slanted)
    highest = max(max(values.values()) for values in errors.values())
    axis.set(xlabel="tokens per backbone pass", ylabel="errors, %", ylim=(0, 105 * min(max(highest, 0.05), 1)))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(target, dpi=110, format="png")


def draw_acceptance(lines: Mapping[str, Mapping[int, float]], target: Path | IO[bytes]) -> None:
    """Plot the accepted share of verified predictions over their depth, a line for each name."""
    figure, (axis,) = _figure(1, height=4, width=7.5)
    for label, shares in lines.items():
        axis.plot(list(shares), [100 * share for share in shares.values()], marker="o", label=label)
    axis.set(xlabel="depth", ylabel="predictions accepted, %", ylim=(0, 102))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(target, dpi=110, format="png")


def draw_runs(points: Sequence[Mapping[str, Any]], path: Path, *, labels: str) -> None:
    """Plot errors over the tokens per backbone pass, a panel for each metric.

    Args:
        points: For each run its `label`, the `series` it belongs to, `tokens_per_pass`, and `errors`: by metric the
            fraction that is wrong and the two ends of its interval.
        labels: What the labels are.
    """
    titles = list(points[0]["errors"])
    figure, axes = _figure(len(titles), height=4)
    for axis, title in zip(axes, titles, strict=True):
        for series in dict.fromkeys(point["series"] for point in points):
            chosen = sorted((p for p in points if p["series"] == series), key=lambda point: point["tokens_per_pass"])
            places = [point["tokens_per_pass"] for point in chosen]
            rates = [[100 * share for share in point["errors"][title]] for point in chosen]
            spread = [[max(rate - low, 0) for rate, low, _ in rates], [max(high - rate, 0) for rate, _, high in rates]]
            axis.errorbar(places, [rate for rate, _, _ in rates], spread, marker="o", capsize=2, label=series)
            for point, place, (rate, _, _) in zip(chosen, places, rates, strict=True):
                axis.annotate(
                    point["label"], (place, rate), xytext=(4, 4), textcoords="offset points", fontsize="small"
                )
        axis.set(title=title, xlabel="tokens per backbone pass", ylabel="%", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small", title=f"numbers: {labels}")
    figure.savefig(path, dpi=110)


def draw_codecs(codecs: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Plot the WER after each codec over the bits per second of its codes, and the WER of the originals if known."""
    figure, (axis,) = _figure(1, height=4.5, width=7)
    for name, metrics in codecs.items():
        point = metrics["bits_per_second"], 100 * metrics["wer"]
        axis.plot(*point, marker="o", linestyle="none")
        axis.annotate(name, point, xytext=(6, 4), textcoords="offset points", fontsize="small")
    highest = max(100 * metrics["wer"] for metrics in codecs.values())
    original = next(iter(codecs.values())).get("wer_original")
    if original is not None:
        axis.axhline(100 * original, color="grey", linestyle="--", label=f"originals, {100 * original:.1f} %")
        axis.legend(fontsize="small")
        highest = max(highest, 100 * original)
    widest = max(metrics["bits_per_second"] for metrics in codecs.values())
    limits = {"xlim": (0, 1.25 * widest), "ylim": (-1, 1.1 * max(highest, 5))}  # room for names and zeros
    axis.set(xlabel="bits per second", ylabel="words wrong, %", **limits)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_spectrograms(sounds: Mapping[str, tuple[Path, str]], path: Path) -> None:
    """Plot the mel spectrograms of sounds, given by name as (file, text spoken in it)."""
    from vita_audio.data.audio import load_audio
    from vita_audio.speech_decoder.mel import HOP_LENGTH, SAMPLE_RATE, mel_spectrogram

    figure, axes = _figure(1, height=2.6 * len(sounds), width=9, rows=len(sounds))
    for axis, (name, (file, text)) in zip(axes, sounds.items(), strict=True):
        mel = mel_spectrogram(load_audio(file, SAMPLE_RATE)[None])[0]  # (bands, frames)
        seconds = mel.shape[1] * HOP_LENGTH / SAMPLE_RATE
        axis.imshow(mel.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, len(mel)), cmap="magma")
        axis.set(title=f"{name}: {text}", xlabel="seconds", ylabel="mel band")
    figure.savefig(path, dpi=110)


def _figure(columns: int, *, height: float, width: float | None = None, rows: int = 1) -> tuple[Figure, np.ndarray]:
    figure = new_figure(width or 4 * columns, height, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()

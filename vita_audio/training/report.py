"""report.html of a training run: one file without links, rewritten while the run continues."""

from __future__ import annotations

import base64
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from vita_audio.files.atomic import write_text
from vita_audio.files.checkpoint import read_json
from vita_audio.plots import new_figure
from vita_audio.training.curves import depth_names, draw_run, plot_entries, training_entries
from vita_audio.training.parts import PARTS, TITLES
from vita_audio.training.run_folder import ARGUMENTS_FILE, DATA_FILE

REPORT_FILE = "report.html"
SECONDS_BETWEEN = 300  # from one report to the next, whose plots take a second or two
PROBLEMS_SHOWN = 100
COLUMNS = {  # value of a depth in the log -> heading
    "loss": "loss",
    "text_loss": "loss of text",
    "audio_loss": "loss of audio codes",
    "accuracy": "accuracy",
    "agreement": "agreement with the backbone",
    "kl": "KL divergence from the backbone",
    "mixture_weight": "weight in the mixture",
}
STYLE = (
    "body{font:14px sans-serif;max-width:1200px;margin:2em auto;padding:0 1em} img{width:100%} "
    "table{border-collapse:collapse} td,th{border:1px solid #ccc;padding:2px 8px;text-align:left} "
    "td+td{font-variant-numeric:tabular-nums}"
)


logger = logging.getLogger(__name__)


class RunReport(TrainerCallback):
    """Draws the curves and writes the report every five minutes, in the main process; a full disk ends no run here."""

    def __init__(self):
        self._last = -float("inf")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "loss" in logs and time.monotonic() - self._last >= SECONDS_BETWEEN:
            try:
                write_report(args.output_dir, state.log_history)
            except OSError as error:
                logger.warning("%s could not be written: %s", REPORT_FILE, error)
            self._last = time.monotonic()


def write_report(folder: str | Path, log_history: Sequence[dict[str, Any]]) -> None:
    """Write report.html and curves.png of a run folder.

    Raises: ValueError if the log has no training losses; MissingPackageError without matplotlib.
    """
    folder = Path(folder)
    draw_run(folder, log_history)
    entries = training_entries(log_history)
    title = escape(f"{folder.absolute().parent.name}/{folder.absolute().name}")
    body = [
        f"<h1>{title}</h1>",
        f"<p>{escape(_state(entries[-1]))}</p>",
        _image((folder / "curves.png").read_bytes()),
        _image(_draw_details(entries)),
        "<h2>Depths</h2><p>The last value of each; text and audio codes are scored apart.</p>",
        _table(_depth_rows(entries)),
        *_data_section(folder),
        "<h2>Settings</h2>",
        _table(_setting_rows(folder)),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    write_text(folder / REPORT_FILE, "\n".join([head, *body, "</html>", ""]))


def _state(entry: dict[str, Any]) -> str:
    return (
        f"Step {entry['step']} after {entry['minutes']:.1f} minutes, about {entry.get('eta_minutes', 0):.1f} minutes "
        f"remain; {entry['tokens_per_second']:.0f} tokens/s, pack fill {entry.get('pack_fill', 1):.1%}"
    )


def _depth_rows(entries: Sequence[dict[str, Any]]) -> Iterator[Sequence[str]]:
    names = depth_names(entries)
    last = {key: value for entry in entries for key, value in entry.items()}
    columns = {key: text for key, text in COLUMNS.items() if any(f"{name}_{key}" in last for name in names)}
    yield ["depth", *columns.values()]
    for depth, name in enumerate(names):
        values = [last.get(f"{name}_{key}") for key in columns]
        yield [f"{depth} ({name})", *("" if value is None else f"{value:.4f}" for value in values)]


def _data_section(folder: Path) -> Iterator[str]:
    """Yield the statistics of the packs and the samples that were left out."""
    path = folder / DATA_FILE
    if not path.exists():
        return
    data = read_json(path)
    problems = [
        (problem["kind"], f"{problem['file']}:{problem['line']}", problem["reason"]) for problem in data["problems"]
    ]
    yield "<h2>Data</h2>"
    yield (
        f"<p>{data['num_documents']} documents, {data['num_tokens']} tokens, {data['num_targets']} targets in "
        f"{data['num_packs']} packs of {data['max_length']}, fill {data['fill']:.1%}; samples left out: "
        f"{len(problems)}</p>"
    )
    if problems:
        yield _table(
            [("samples left out", "number"), *((k, str(n)) for k, n in Counter(p[0] for p in problems).items())]
        )
        yield _table([("kind", "file and line", "reason"), *problems[:PROBLEMS_SHOWN]])


def _setting_rows(folder: Path) -> Iterator[Sequence[str]]:
    yield "setting", "value"
    path = folder / ARGUMENTS_FILE
    for name, value in read_json(path).items() if path.exists() else ():
        if value not in (None, [], {}):
            yield name, str(value)


def _table(rows: Iterable[Sequence[str]]) -> str:
    header, *body = rows
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body]
    return "<table>" + "\n".join(lines) + "</table>"


def _image(png: bytes) -> str:
    return f'<img alt="plot" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _draw_details(entries: Sequence[dict[str, Any]]) -> bytes:
    """Plot losses of text and audio, agreement, gradient norms and speed; return the PNG."""
    figure = new_figure(20, 4.5)
    kinds, agreement, norms, speed = figure.subplots(1, 4)
    for name in depth_names(entries):
        for kind, style in (("text", "-"), ("audio", "--")):
            if name in ("main", "mtp_0"):
                plot_entries(kinds, entries, f"{name}_{kind}_loss", label=f"{name}, {kind}", linestyle=style)
        plot_entries(agreement, entries, f"{name}_agreement", label=name)
    for part in PARTS:
        plot_entries(norms, entries, f"grad_norm_{part}", label=TITLES[part])
    plot_entries(speed, entries, "tokens_per_second", label="tokens/s")
    titles = ("loss of text and audio", "agreement with the backbone", "gradient norm", "tokens/s")
    for axis, title in zip((kinds, agreement, norms, speed), titles, strict=True):
        axis.set(title=title, xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    figure.subplots_adjust(left=0.05, right=0.98, wspace=0.18)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()

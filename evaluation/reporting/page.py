"""Reports from the templates: an evaluation as Markdown and as one HTML page with the worst samples to listen to."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from urllib.parse import quote

import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.metrics.ours import scored_tokens
from evaluation.reporting.plots import draw_acceptance, draw_errors_over_speed
from evaluation.results import DONE, ORIGINAL, Answer, Outcome, comparisons, pooled, published_rows, worst
from evaluation.tasks import MEASURES, PASSES_PER_TOKEN, SPEEDS, TASKS, WITHOUT_AUDIO, Task, Value

NUM_WORST = 20
PLAYER_RATE = 24_000  # Hz
MAX_CLIP_SECONDS = 30
DIFFERENCE_HEADER = ("points, 95 % interval", "p")
QUALITY, ACCEPTANCE = "quality over speed", "acceptance by depth"
CHART_FILES = {QUALITY: "chart.png", ACCEPTANCE: "acceptance.png"}
MAX_EMBEDDED_BYTES = 12_000_000  # for all clips; the rest are links to their files
TEMPLATES = Path(__file__).with_name("templates")


class Table(NamedTuple):
    """A table of texts with a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(template: Path, **values: Any) -> str:
    """Return a Jinja template filled with values, which are escaped in HTML.

    The template may include those in `TEMPLATES`; the filter `percent` shows a fraction, or "-" for None.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=template.suffix == ".html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "data_uri": data_uri}
    return environment.get_template(template.name).render(values)


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def all_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Return a table for each task, then speed, acceptance and differences between modes; empty ones are left out."""
    tables = []
    for name, task in TASKS.items():
        chosen = [outcome for outcome in outcomes if outcome.benchmark.task == name]
        if chosen:
            columns = _columns(task, chosen)
            header = ["benchmark", "mode", "samples", *columns.values(), "note"]
            tables.append(Table(task.title, header, list(_rows(list(columns), chosen))))
    tables += [_speed_table(outcomes), _acceptance_table(outcomes), _difference_table(outcomes)]
    return [table for table in tables if table.rows]


def _columns(task: Task, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return titles by name of the metric; public rules and measures without a value are left out."""
    present = {key for outcome in outcomes for key in outcome.metrics}
    present |= {row["figure"] for row in published_rows(outcomes)}
    columns = {
        metric.name: metric.title
        for metric in task.metrics
        if not metric.is_public or any(outcome.benchmark.key(metric.name) in present for outcome in outcomes)
    }
    columns |= {WITHOUT_AUDIO: "without audio"} if task.speaks else {}
    return columns | {key: title for key, title in MEASURES.items() if key in present}


def _rows(names: Sequence[str], outcomes: Sequence[Outcome]) -> Iterable[list[str]]:
    for benchmark in dict.fromkeys(outcome.benchmark for outcome in outcomes):
        keys = [benchmark.key(name) for name in names]
        chosen = [outcome for outcome in outcomes if outcome.benchmark == benchmark]
        yield from (_row(keys, outcome) for outcome in chosen)
        published: dict[tuple[str, str], dict[str, float]] = {}
        for row in published_rows(chosen):
            published.setdefault((row["model"], row["source"]), {})[row["figure"]] = row["value"]
        for (model, source), values in published.items():
            cells = [f"{100 * values[key]:.4g} %" if key in values else "" for key in keys]
            yield [benchmark.name, model, "", *cells, source]


def _row(keys: Sequence[str], outcome: Outcome) -> list[str]:
    mode = outcome.mode
    if mode == ORIGINAL:
        mode = f"recordings, transcribed by {outcome.judge}" if outcome.judge else "recordings"
    values = [str(outcome.metrics.get(key, "-")) for key in keys]
    note = outcome.note if outcome.status == DONE else f"{outcome.status}: {outcome.note}"
    return [outcome.benchmark.name, mode, str(len(outcome.samples) or "-"), *values, note]


def _speed_table(outcomes: Sequence[Outcome]) -> Table:
    timed = [outcome for outcome in outcomes if outcome.speed]
    keys = [key for key in SPEEDS if key != PASSES_PER_TOKEN and any(key in outcome.speed for outcome in timed)]
    rows = []
    for outcome in timed:
        cells = [str(Value.of(key, outcome.speed[key])) if key in outcome.speed else "-" for key in keys]
        rows.append([outcome.benchmark.name, outcome.mode, *cells])
    return Table("Speed", ["benchmark", "mode", *(SPEEDS[key] for key in keys)], rows)


def _acceptance_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the accepted share of verified predictions by depth."""
    depths = sorted({depth for outcome in outcomes for depth in outcome.acceptance}, key=int)
    rows = [
        [one.benchmark.name, one.mode, *(_share(one, depth) for depth in depths)] for one in outcomes if one.acceptance
    ]
    return Table("Predictions that the backbone accepted", ["benchmark", "mode", *(f"depth {d}" for d in depths)], rows)


def _share(outcome: Outcome, depth: str) -> str:
    return percent(outcome.acceptance[depth].value if depth in outcome.acceptance else None)


def _difference_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the paired differences of modes in our own metrics."""
    titles = {
        (outcome.benchmark.name, outcome.benchmark.key(metric.name)): metric.title
        for outcome in outcomes
        for metric in outcome.task.own_metrics
    }
    rows = [
        [row["benchmark"], title, f"{row['mode']} less {row['against']}", *difference_cells(row)]
        for row in comparisons(outcomes)
        if (title := titles.get((row["benchmark"], row["figure"])))
    ]
    return Table("Differences on the same samples", ["benchmark", "metric", "modes", *DIFFERENCE_HEADER], rows)


def difference_cells(row: Mapping[str, float]) -> list[str]:
    """Return the cells of a `Comparison`: percentage points with their interval, and the p-value."""
    points = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return [points, f"{row['p_value']:.3f}"]


def render_results(
    folder: Path, outcomes: Sequence[Outcome], settings: Mapping[str, Any], surroundings: Mapping[str, Any]
) -> dict[str, str | bytes]:
    """Return the contents of results.md, results.html and the plots that have data, by file name.

    Args:
        folder: Folder of the page, from which audio that does not fit into the page is linked.
    """
    charts = draw_charts(outcomes)
    files = {title: CHART_FILES[title] for title in charts}
    values = {"tables": all_tables(outcomes), "settings": settings, "surroundings": surroundings}
    page = {"worst": list(_worst_samples(outcomes)), "clips": Clips(folder), "diff": diff}
    return {
        "results.md": render(TEMPLATES / "results.md", **values, charts=files),
        "results.html": render(TEMPLATES / "results.html", **values, charts=charts, **page),
        **{files[title]: chart for title, chart in charts.items()},
    }


def draw_charts(outcomes: Sequence[Outcome]) -> dict[str, bytes]:
    """Return PNG plots by their titles in CHART_FILES; those without data are left out."""
    charts = {QUALITY: _draw_quality(outcomes), ACCEPTANCE: _draw_acceptance(outcomes)}
    return {title: chart for title, chart in charts.items() if chart}


def _draw_acceptance(outcomes: Sequence[Outcome]) -> bytes | None:
    """Return a plot of the accepted share over the depth, a line for each mode over all its benchmarks."""
    lines: dict[str, dict[int, float]] = {}
    for mode in dict.fromkeys(outcome.mode for outcome in outcomes):
        scores = [outcome.acceptance for outcome in outcomes if outcome.mode == mode]
        depths = sorted({int(depth) for by_depth in scores for depth in by_depth})
        shares = {depth: pooled([one[str(depth)] for one in scores if str(depth) in one]) for depth in depths}
        lines |= {mode: shares} if shares else {}
    if not lines:
        return None
    plot = io.BytesIO()
    draw_acceptance(lines, plot)
    return plot.getvalue()


def _draw_quality(outcomes: Sequence[Outcome]) -> bytes | None:
    """Return a plot of errors over the speed of the modes, or None without data.

    A line is the mean over the benchmarks of a task that ran in all modes.
    """
    timed = [outcome for outcome in outcomes if outcome.metrics and outcome.speed]
    speeds = {
        mode: {
            "backbone_passes_per_token": pooled([one.speed[PASSES_PER_TOKEN] for one in timed if one.mode == mode]),
            "tokens_per_second": pooled([one.speed["tokens_per_second"] for one in timed if one.mode == mode]),
        }
        for mode in dict.fromkeys(outcome.mode for outcome in timed)
    }
    errors: dict[str, dict[str, list[float]]] = {}
    for outcome in timed:
        modes = {one.mode for one in timed if one.benchmark == outcome.benchmark}
        for metric in outcome.task.own_metrics if modes == set(speeds) else ():
            value = outcome.metrics[outcome.benchmark.key(metric.name)].value
            line = errors.setdefault(f"{outcome.task.title}: {metric.title.replace('right', 'wrong')}", {})
            line.setdefault(outcome.mode, []).append(1 - value if metric.more_is_better else value)
    if not errors:
        return None
    plot = io.BytesIO()
    means = {label: {mode: fmean(values) for mode, values in line.items()} for label, line in errors.items()}
    draw_errors_over_speed(speeds, means, plot)
    return plot.getvalue()


class Clips:
    """Makes audio players; embeds audio while there is room."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._room = MAX_EMBEDDED_BYTES

    def player(self, audio: str | Path) -> Markup:
        """Return the HTML of a player, or the error of an unreadable file."""
        from vita_audio.data.audio import AudioError, load_audio

        try:
            wave = load_audio(audio, PLAYER_RATE)
        except (OSError, AudioError, soundfile.LibsndfileError) as error:
            return Markup('<span class="error">{}</span>').format(error)
        # libsndfile's MP3 encoder ends the process for samples that are far out of range.
        wave = wave[: MAX_CLIP_SECONDS * PLAYER_RATE].clip(-1, 1)
        encoded = io.BytesIO()
        soundfile.write(encoded, wave.numpy(), PLAYER_RATE, format="MP3")
        source = data_uri(encoded.getvalue(), "audio/mpeg")
        if len(source) > self._room:
            source = quote(Path(os.path.relpath(audio, self._folder)).as_posix())
        else:
            self._room -= len(source)
        return Markup('<audio controls preload="none" src="{}"></audio>').format(source)


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def diff(reference: str, said: str, language: str) -> Iterator[tuple[str, str]]:
    """Yield runs of words in order, with "same", "del" if only the reference has them, or "ins" if only `said` has."""
    wanted, got = scored_tokens(reference, language), scored_tokens(said, language)
    for kind, start, end, said_start, said_end in SequenceMatcher(None, wanted, got, autojunk=False).get_opcodes():
        if end > start:
            yield "same" if kind == "equal" else "del", " ".join(wanted[start:end])
        if kind != "equal" and said_end > said_start:
            yield "ins", " ".join(got[said_start:said_end])


def _worst_samples(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, list[tuple[Outcome, Answer]]]]:
    """Yield the title of a task, the mode and the worst samples."""
    for name, task in TASKS.items():
        chosen = [outcome for outcome in outcomes if outcome.benchmark.task == name and outcome.mode != ORIGINAL]
        for mode in dict.fromkeys(outcome.mode for outcome in chosen):
            if samples := worst([outcome for outcome in chosen if outcome.mode == mode], NUM_WORST):
                yield task.title, mode, samples

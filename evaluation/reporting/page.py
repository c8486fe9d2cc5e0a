"""Reports: an evaluation as Markdown and as one HTML page with the worst samples to listen to; codecs as Markdown."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

import soundfile

from evaluation.metrics.ours import scored_tokens
from evaluation.metrics.score import Score
from evaluation.reporting.plots import draw_acceptance, draw_errors_over_speed
from evaluation.results import DONE, ORIGINAL, Answer, Outcome, comparisons, pooled, published_rows, worst
from evaluation.suites import SPOKEN_QA, TEXT_QA
from evaluation.tasks import MEASURES, PASSES_PER_TOKEN, SPEEDS, TASKS, TEXT, TRANSCRIPT, WITHOUT_AUDIO, Task, Value

NUM_WORST = 20
PLAYER_RATE = 24_000  # Hz
MAX_CLIP_SECONDS = 30
DIFFERENCE_HEADER = ("points, 95 % interval", "p")
QUALITY, ACCEPTANCE = "quality over speed", "acceptance by depth"
CHART_FILES = {QUALITY: "chart.png", ACCEPTANCE: "acceptance.png"}
MAX_EMBEDDED_BYTES = 12_000_000  # for all clips; the rest are links to their files
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { border: 1px solid #ccc; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; } td:first-child { white-space: nowrap; }
del { background: #ffd9d6; } ins { background: #d3f0d3; text-decoration: none; }
summary { cursor: pointer; font-weight: 600; } audio { height: 2rem; width: 15rem; } img { max-width: 100%; }
.error { color: #a00; }
"""
CODEC_COLUMNS = {  # key of the metric, header, format
    "codes_per_second": ("codes/s", "{:.1f}"),
    "bits_per_second": ("bits/s", "{:.0f}"),
    "bits_per_second_used": ("bits/s used", "{:.0f}"),
    "codebook_size": ("codes", "{}"),
    "codes_used": ("codes used", "{}"),
    "codebook_perplexity": ("perplexity", "{:.0f}"),
    "mel_distance": ("mel distance", "{:.3f}"),
    "wer_original": ("WER of originals", "{:.1%}"),
    "wer": ("WER", "{:.1%}"),
    "encoding_cpu_seconds_per_second": ("encoding, CPU s per s", "{:.2f}"),
    "decoding_cpu_seconds_per_second": ("decoding, CPU s per s", "{:.2f}"),
}


@dataclass(frozen=True)
class Table:
    """A table of texts with a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        """Return the lines of the table without its title; bars inside cells are escaped."""
        lines = (self.header, ["---"] * len(self.header), *self.rows)
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]

    def html(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<h2>{escape(self.title)}</h2><table><tr>{head}</tr>{body}</table>"


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
        [one.benchmark.name, one.mode, *(_share(one.acceptance[d]) if d in one.acceptance else "-" for d in depths)]
        for one in outcomes
        if one.acceptance
    ]
    return Table("Predictions that the backbone accepted", ["benchmark", "mode", *(f"depth {d}" for d in depths)], rows)


def _share(score: Score) -> str:
    return f"{100 * score.value:.1f} %"


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


def as_markdown(
    outcomes: Sequence[Outcome],
    settings: Mapping[str, Any],
    surroundings: Mapping[str, Any],
    charts: Sequence[str],
) -> str:
    """Return the content of results.md; `charts` are the titles of plots in CHART_FILES."""
    lines = [f"# Evaluation of {settings['model']}", ""]
    for title in charts:
        lines += [f"![{title}]({CHART_FILES[title]})", ""]
    for table in all_tables(outcomes):
        lines += [f"## {table.title}", "", *table.markdown(), ""]
    lines += ["Rates with 95 % intervals.", "", "## Made with", ""]
    return "\n".join([*lines, *(f"* {name}: {value}" for name, value in surroundings.items()), ""])


def codecs_as_markdown(results: Mapping[str, Mapping[str, Any]], num_clips: int, judge: str | None) -> str:
    """Return a comparison of codecs, a row for each; `results` holds their metrics by name."""
    columns = {key: one for key, one in CODEC_COLUMNS.items() if any(key in metrics for metrics in results.values())}
    title = f"Audio codecs on {num_clips} clips" + (f", judged by {judge}" if judge else "")
    rows = [
        [name, *(form.format(metrics[key]) if key in metrics else "" for key, (_, form) in columns.items())]
        for name, metrics in results.items()
    ]
    lines = [
        *(f"# {title}", ""),
        *Table(title, ["codec", *(header for header, _ in columns.values())], rows).markdown(),
        "",
        "bits/s is the capacity of the codes, bits/s used their entropy rate on these clips. The mel distance is the "
        "mean difference of natural log-mels; it is large for a decoder with its own voice, regardless of its quality.",
        *(["", "![WER over bits per second](codecs.png)"] if judge else []),
        *("", "![spectrograms of one clip](spectrograms.png)"),
    ]
    return "\n".join(lines) + "\n"


def as_html(
    folder: Path,
    outcomes: Sequence[Outcome],
    settings: Mapping[str, Any],
    surroundings: Mapping[str, Any],
    charts: Mapping[str, bytes],
) -> str:
    """Return the page.

    Args:
        folder: Folder of the page, from which audio that does not fit into the page is linked.
        charts: `draw_charts` of the outcomes.
    """
    model = escape(str(settings["model"]))
    facts = {"Made with": surroundings, "Settings": settings}
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation of {model}</title>',
        f"<style>{STYLE}</style><h1>Evaluation of {model}</h1>",
        *(f'<p><img alt="{name}" src="{data_uri("image/png", chart)}"></p>' for name, chart in charts.items()),
        *(table.html() for table in all_tables(outcomes)),
        *_worst_samples(outcomes, Clips(folder)),
        *(
            Table(title, ["", ""], [[name, str(value)] for name, value in values.items()]).html()
            for title, values in facts.items()
        ),
    ]
    return "\n".join(parts) + "</html>\n"


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

    def player(self, audio: str | Path | None) -> str:
        """Return the HTML of a player, nothing without audio, or the error of an unreadable file."""
        from vita_audio.data.audio import AudioError, load_audio

        if audio is None:
            return ""
        try:
            wave = load_audio(audio, PLAYER_RATE)
        except (OSError, AudioError, soundfile.LibsndfileError) as error:
            return f'<span class="error">{escape(str(error))}</span>'
        encoded = io.BytesIO()
        soundfile.write(encoded, wave[: MAX_CLIP_SECONDS * PLAYER_RATE].numpy(), PLAYER_RATE, format="MP3")
        source = data_uri("audio/mpeg", encoded.getvalue())
        if len(source) > self._room:
            source = quote(Path(os.path.relpath(audio, self._folder)).as_posix())
        else:
            self._room -= len(source)
        return f'<audio controls preload="none" src="{escape(source)}"></audio>'


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def diff(reference: str, said: str, language: str) -> str:
    """Return the reference as HTML with missing words struck out and inserted words marked."""
    wanted, got = scored_tokens(reference, language), scored_tokens(said, language)
    parts = []
    for kind, start, end, said_start, said_end in SequenceMatcher(None, wanted, got, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(escape(" ".join(wanted[start:end])))
            continue
        if end > start:
            parts.append(f"<del>{escape(' '.join(wanted[start:end]))}</del>")
        if said_end > said_start:
            parts.append(f"<ins>{escape(' '.join(got[said_start:said_end]))}</ins>")
    return " ".join(parts)


def _worst_samples(outcomes: Sequence[Outcome], clips: Clips) -> Iterator[str]:
    head = "".join(f"<th>{cell}</th>" for cell in ("sample", "input", "expected, with differences", "answer"))
    for name, task in TASKS.items():
        chosen = [outcome for outcome in outcomes if outcome.benchmark.task == name and outcome.mode != ORIGINAL]
        for mode in dict.fromkeys(outcome.mode for outcome in chosen):
            samples = worst([outcome for outcome in chosen if outcome.mode == mode], NUM_WORST)
            if samples:
                rows = "".join(_sample_row(outcome, sample, clips) for outcome, sample in samples)
                title = f"{task.title}, {escape(mode)}: the {len(samples)} worst samples"
                yield f"<details><summary>{title}</summary><table><tr>{head}</tr>{rows}</table></details>"


def _sample_row(outcome: Outcome, sample: Answer, clips: Clips) -> str:
    item, language = sample.item, outcome.benchmark.language
    if sample.error is not None:
        difference = f'<span class="error">{escape(sample.error)}</span>'
    elif outcome.benchmark.task in (SPOKEN_QA, TEXT_QA):
        said = {"text": sample.said[TEXT], "transcript": sample.said[TRANSCRIPT]}
        wanted = f"expected: {escape(' / '.join(item.references))}"
        difference = "<br>".join([wanted, *(f"{form}: {escape(text)}" for form, text in said.items() if text)])
    else:
        source = outcome.task.metrics[0].source
        difference = diff(item.references[0], sample.said[source], language)
    given = "<br>".join(filter(None, [escape(item.text or ""), clips.player(item.audio or item.voice)]))
    answer = clips.player(sample.wav) if sample.wav else escape(sample.said[TEXT])
    cells = (f"{escape(outcome.benchmark.name)}<br>{escape(item.id)}", given, difference, answer)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

"""Tables of an evaluation, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from evaluation.figures import MEASURES, SPEEDS, WITHOUT_AUDIO, Value
from evaluation.results import DONE, ORIGINAL, Outcome, comparisons, published_rows
from evaluation.tasks import TASKS, Task

Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


def all_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Return one table a task, then speed, then differences between modes; empty ones are left out."""
    tables = []
    for name, task in TASKS.items():
        chosen = [outcome for outcome in outcomes if outcome.benchmark.task == name]
        if chosen:
            columns = _columns(task, chosen)
            header = ["benchmark", "mode", "samples", *(title for title, _ in columns), "note"]
            tables.append((task.title, header, list(_rows([key for _, key in columns], chosen))))
    tables += [speed_table(outcomes), difference_table(outcomes)]
    return [table for table in tables if table[2]]


def _columns(task: Task, outcomes: Sequence[Outcome]) -> list[tuple[str, Callable[[str], str]]]:
    """Return titles and how a language calls the figures, but for those of public rules and measures not in use."""
    present = {key for outcome in outcomes for key in outcome.figures}
    present |= {row["figure"] for row in published_rows(outcomes)}
    languages = {outcome.benchmark.language for outcome in outcomes}
    columns: list[tuple[str, Callable[[str], str]]] = [
        (figure.title, figure.key)
        for figure in task.figures
        if not figure.of_reference or any(figure.key(language) in present for language in languages)
    ]
    others = {WITHOUT_AUDIO: "without audio"} if task.speaks else {}
    others |= {key: title for key, title in MEASURES.items() if key in present}
    return columns + [(title, partial(_same, key)) for key, title in others.items()]


def _same(key: str, language: str) -> str:
    return key


def _rows(columns: Sequence[Callable[[str], str]], outcomes: Sequence[Outcome]) -> Iterable[list[str]]:
    for benchmark in dict.fromkeys(outcome.benchmark for outcome in outcomes):
        keys = [key(benchmark.language) for key in columns]
        chosen = [outcome for outcome in outcomes if outcome.benchmark == benchmark]
        yield from (_row(keys, outcome) for outcome in chosen)
        published: dict[tuple[str, str], dict[str, float]] = {}
        for row in published_rows(chosen):
            published.setdefault((row["model"], row["source"]), {})[row["figure"]] = row["value"]
        for (model, source), values in published.items():
            figures = [f"{100 * values[key]:.4g} %" if key in values else "" for key in keys]
            yield [benchmark.name, model, "", *figures, source]


def _row(keys: Sequence[str], outcome: Outcome) -> list[str]:
    mode = outcome.mode
    if mode == ORIGINAL:
        mode = f"recordings, as {outcome.judge} hears them" if outcome.judge else "recordings"
    figures = [str(outcome.figures.get(key, "-")) for key in keys]
    note = outcome.note if outcome.status == DONE else f"{outcome.status}: {outcome.note}"
    return [outcome.benchmark.name, mode, str(len(outcome.samples) or "-"), *figures, note]


def speed_table(outcomes: Sequence[Outcome]) -> Table:
    rows = [
        [
            outcome.benchmark.name,
            outcome.mode,
            *(str(Value.of(key, outcome.speed[key])) if key in outcome.speed else "-" for key in SPEEDS),
        ]
        for outcome in outcomes
        if outcome.speed
    ]
    return "Speed", ["benchmark", "mode", *SPEEDS.values()], rows


def difference_table(outcomes: Sequence[Outcome]) -> Table:
    """Return paired differences of modes in our own figures."""
    titles = {(name, figure.key(language)): figure.title for name, language, figure in _own_figures(outcomes)}
    rows = [
        [
            row["benchmark"],
            titles[row["benchmark"], row["figure"]],
            f"{row['mode']} less {row['against']}",
            f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})",
            f"{row['p_value']:.3f}",
        ]
        for row in comparisons(outcomes)
        if (row["benchmark"], row["figure"]) in titles
    ]
    return "Differences on the same samples", ["benchmark", "figure", "modes", "points, 95 % interval", "p"], rows


def _own_figures(outcomes: Sequence[Outcome]):
    for outcome in outcomes:
        for figure in outcome.task.own_figures:
            yield outcome.benchmark.name, outcome.benchmark.language, figure


def as_markdown(
    outcomes: Sequence[Outcome], settings: Mapping[str, Any], surroundings: Mapping[str, Any], chart: str | None = None
) -> str:
    """Return the content of results.md; `chart` is the path of the picture."""
    lines = [f"# Evaluation of {settings['model']}", ""]
    if chart:
        lines += [f"![quality over speed]({chart})", ""]
    for title, header, rows in all_tables(outcomes):
        lines += [f"## {title}", "", *markdown_table(header, rows), ""]
    lines += ["Rates with 95 % intervals.", "", "## Made with", ""]
    return "\n".join([*lines, *(f"* {name}: {value}" for name, value in surroundings.items()), ""])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; bars inside of cells are escaped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, ["---"] * len(header), *rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]

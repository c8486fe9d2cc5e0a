"""One self-contained HTML page about an evaluation: chart, tables, the worst samples to listen to, how it was made."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

import soundfile

from evaluation.figures import TEXT, TRANSCRIPT
from evaluation.metrics.ours import scored_tokens
from evaluation.metrics.score import Score
from evaluation.reporting.plots import draw_errors_over_speed
from evaluation.reporting.tables import Table, all_tables
from evaluation.results import ORIGINAL, Outcome, Sample, worst
from evaluation.suites import SPOKEN_QA, TEXT_QA
from evaluation.tasks import TASKS
from vita_audio.data.audio import AudioError, load_audio

NUM_WORST = 20
PLAYER_RATE = 24_000  # Hz
MAX_CLIP_SECONDS = 30
MAX_EMBEDDED_BYTES = 12_000_000  # of all clips; further ones are links to their files
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { border: 1px solid #ccc; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; } td:first-child { white-space: nowrap; }
del { background: #ffd9d6; } ins { background: #d3f0d3; text-decoration: none; }
summary { cursor: pointer; font-weight: 600; } audio { height: 2rem; width: 15rem; } img { max-width: 100%; }
.error { color: #a00; }
"""


def write_page(
    path: Path, outcomes: Sequence[Outcome], settings: Mapping[str, Any], surroundings: Mapping[str, Any]
) -> None:
    """Write the page; audio that does not fit into it is linked relative to its folder."""
    model = escape(str(settings["model"]))
    clips = Clips(path.parent)
    chart = draw_chart(outcomes)
    image = f'<p><img alt="quality over speed" src="{data_uri("image/png", chart)}"></p>' if chart else ""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation of {model}</title>',
        f"<style>{STYLE}</style><h1>Evaluation of {model}</h1>",
        image,
        *map(_table, all_tables(outcomes)),
        *_worst_samples(outcomes, clips),
        _table(("Made with", ["", ""], [[name, str(value)] for name, value in surroundings.items()])),
        _table(("Settings", ["", ""], [[name, str(value)] for name, value in settings.items()])),
    ]
    path.write_text("\n".join(parts) + "</html>\n", encoding="utf-8")


def draw_chart(outcomes: Sequence[Outcome]) -> bytes | None:
    """Return a PNG picture of errors over the speed of the modes, if there is anything to draw.

    A line is the mean of a task's benchmarks, of those that ran in all modes.
    """
    timed = [outcome for outcome in outcomes if outcome.figures and outcome.speed]
    speeds = {
        mode: {
            "backbone_passes_per_token": pooled([one.speed["passes_per_token"] for one in timed if one.mode == mode]),
            "tokens_per_second": pooled([one.speed["tokens_per_second"] for one in timed if one.mode == mode]),
        }
        for mode in dict.fromkeys(outcome.mode for outcome in timed)
    }
    errors: dict[str, dict[str, list[float]]] = {}
    for outcome in timed:
        modes = {one.mode for one in timed if one.benchmark == outcome.benchmark}
        for figure in outcome.task.own_figures if modes == set(speeds) else ():
            value = outcome.figures[figure.key(outcome.benchmark.language)].value
            line = errors.setdefault(f"{outcome.task.title}: {figure.title.replace('right', 'wrong')}", {})
            line.setdefault(outcome.mode, []).append(1 - value if figure.more_is_better else value)
    if not errors:
        return None
    picture = io.BytesIO()
    means = {label: {mode: fmean(values) for mode, values in line.items()} for label, line in errors.items()}
    draw_errors_over_speed(speeds, means, picture)
    return picture.getvalue()


def pooled(scores: Sequence[Score]) -> float:
    """Return the rate of all samples together."""
    return sum(score.numerators.sum() for score in scores) / sum(score.denominators.sum() for score in scores)


class Clips:
    """Makes players; embeds audio as long as there is room."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._room = MAX_EMBEDDED_BYTES

    def player(self, audio: str | Path | None) -> str:
        """Return the HTML of a player, nothing without audio, or what is wrong with the file."""
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
    """Return the reference as HTML, with what is missing struck out and what came instead marked."""
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


def _worst_samples(outcomes: Sequence[Outcome], clips: Clips) -> list[str]:
    sections = []
    for name, task in TASKS.items():
        chosen = [outcome for outcome in outcomes if outcome.benchmark.task == name and outcome.mode != ORIGINAL]
        for mode in dict.fromkeys(outcome.mode for outcome in chosen):
            samples = worst([outcome for outcome in chosen if outcome.mode == mode], NUM_WORST)
            if samples:
                rows = "".join(_sample_row(outcome, sample, clips) for outcome, sample in samples)
                head = "".join(f"<th>{cell}</th>" for cell in ("sample", "given", "wanted, and what came", "answer"))
                title = f"{task.title}, {escape(mode)}: the {len(samples)} worst samples"
                sections.append(f"<details><summary>{title}</summary><table><tr>{head}</tr>{rows}</table></details>")
    return sections


def _sample_row(outcome: Outcome, sample: Sample, clips: Clips) -> str:
    item, language = sample.item, outcome.benchmark.language
    if sample.error is not None:
        difference = f'<span class="error">{escape(sample.error)}</span>'
    elif outcome.benchmark.task in (SPOKEN_QA, TEXT_QA):
        said = {"wrote": sample.said[TEXT], "was heard to say": sample.said[TRANSCRIPT]}
        wanted = f"wanted: {escape(' / '.join(item.references))}"
        difference = "<br>".join([wanted, *(f"{how}: {escape(text)}" for how, text in said.items() if text)])
    else:
        source = outcome.task.figures[0].source
        difference = diff(item.references[0], sample.said[source], language)
    given = "<br>".join(filter(None, [escape(item.text or ""), clips.player(item.audio or item.voice)]))
    answer = clips.player(sample.wav) if sample.wav else escape(sample.said[TEXT])
    cells = (f"{escape(outcome.benchmark.name)}<br>{escape(item.id)}", given, difference, answer)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _table(table: Table) -> str:
    title, header, rows = table
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>"

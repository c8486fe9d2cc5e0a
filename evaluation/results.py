"""What an evaluation found: scored samples and figures of every benchmark and mode, as results.json and as Markdown."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from evaluation.figures import interval
from evaluation.run_folder import Row, RowFile
from evaluation.runner import ANSWERS, FAILED, ORIGINAL, TRANSCRIPTS
from evaluation.suites import Benchmark, Item
from evaluation.tasks import TASKS, TEXT, TRANSCRIPT, Task

DONE, MISSING, BROKEN, UNFINISHED = "done", "missing", "failed", "unfinished"
PUBLISHED = Path(__file__).parent / "published.json"


@dataclass(frozen=True)
class Sample:
    """An item, what was said to it, and the counts of each figure by its key."""

    item: Item
    said: Mapping[str, str]  # TEXT, TRANSCRIPT
    wav: Path | None
    error: str | None
    counts: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Value:
    """A rate with its 95 % interval, where one can be told."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        text = f"{100 * self.value:.1f} %"
        return text if self.low is None else f"{text} ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass
class Outcome:
    """A benchmark in a mode.

    Attributes:
        note: Why there are no figures, or what a reader must know.
        figures: By key; those of quality.
        speed: tokens_per_second, passes_per_token, real_time_factor; what could not be measured is absent.
    """

    benchmark: Benchmark
    mode: str
    status: str
    note: str = ""
    samples: list[Sample] = field(default_factory=list)
    figures: dict[str, Value] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    judge: str | None = None

    @property
    def task(self) -> Task:
        return TASKS[self.benchmark.task]

    @property
    def num_errors(self) -> int:
        return sum(sample.error is not None for sample in self.samples)

    @property
    def num_without_audio(self) -> int | None:
        return sum(sample.wav is None for sample in self.samples) if self.task.speaks else None

    def badness(self, sample: Sample) -> float:
        """Return 0 for a sample without fault, infinity for one that could not be answered."""
        if sample.error is not None:
            return math.inf
        keys = [figure.key(self.benchmark.language) for figure in self.task.figures]
        return sum(figure.badness(*sample.counts[key]) for figure, key in zip(self.task.figures, keys, strict=True))


def worst(outcomes: Sequence[Outcome], count: int) -> list[tuple[Outcome, Sample]]:
    """Return the samples of some outcomes that did worst, with faults only."""
    pairs = [(outcome, sample) for outcome in outcomes for sample in outcome.samples if outcome.badness(sample) > 0]
    return sorted(pairs, key=lambda pair: -pair[0].badness(pair[1]))[:count]


def collect(output: Path, benchmark: Benchmark, items: Sequence[Item], mode: str) -> Outcome:
    """Score what was written down for a benchmark in a mode; what is not answered yet makes it unfinished."""
    folder = output / mode / benchmark.name
    failures = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{FAILED}-*.json"))]
    if failures:
        return Outcome(benchmark, mode, BROKEN, failures[0]["error"])
    answers, heard = RowFile(folder, ANSWERS).read(), RowFile(folder, TRANSCRIPTS).read()
    if mode == ORIGINAL:
        items = [item for item in items if item.recording]
        if not items:
            return Outcome(benchmark, mode, MISSING, "no recordings of the texts")
    speaks = TASKS[benchmark.task].speaks
    waiting = [item for item in items if item.id not in answers or _is_unheard(answers[item.id], heard, speaks)]
    if waiting:
        done = f"{len(items) - len(waiting)} of {len(items)} samples are there; start it again"
        return Outcome(benchmark, mode, UNFINISHED, done)
    samples = [_sample(benchmark, item, answers[item.id], heard.get(item.id, {}), folder) for item in items]
    outcome = Outcome(benchmark, mode, DONE, samples=samples)
    if outcome.num_errors == len(samples):
        return Outcome(benchmark, mode, BROKEN, f"all {len(samples)} samples failed, the first: {samples[0].error}")
    for figure in outcome.task.figures:
        if mode != ORIGINAL or figure.source == TRANSCRIPT:
            key = figure.key(benchmark.language)
            outcome.figures[key] = rate([sample.counts[key] for sample in samples])
    if speaks and mode != ORIGINAL:
        outcome.figures["without_audio"] = rate([(float(sample.wav is None), 1.0) for sample in samples])
    if mode != ORIGINAL:
        outcome.speed = _speed([answers[item.id] for item in items])
    outcome.judge = next((row["judge"] for row in heard.values()), None)
    if outcome.num_errors:
        outcome.note = f"{outcome.num_errors} samples failed and count as wrong"
    return outcome


def _is_unheard(answer: Row, heard: Mapping[str, Row], speaks: bool) -> bool:
    return speaks and bool(answer["wav"]) and answer["id"] not in heard


def _sample(benchmark: Benchmark, item: Item, answer: Row, heard: Row, folder: Path) -> Sample:
    said = {TEXT: answer["text"], TRANSCRIPT: heard.get("transcript", "")}
    counts = {
        figure.key(benchmark.language): figure.count(said[figure.source], item, benchmark.language)
        for figure in TASKS[benchmark.task].figures
    }
    wav = folder / answer["wav"] if answer["wav"] else None
    return Sample(item, said, wav, answer.get("error") or heard.get("error"), counts)


def rate(counts: Sequence[tuple[float, float]]) -> Value:
    """Return the sum of the parts over the sum of the wholes; raises ZeroDivisionError if there is no whole."""
    low, high = interval(counts) or (None, None)
    return Value(sum(part for part, _ in counts) / sum(whole for _, whole in counts), low, high)


def _speed(rows: Sequence[Row]) -> dict[str, float]:
    timed = [row for row in rows if row.get("num_tokens")]
    sums = {
        name: sum(row[name] for row in timed)
        for name in ("num_tokens", "num_backbone_passes", "generate_seconds", "total_seconds", "speech_seconds")
    } if timed else {}  # fmt: skip
    speed = {}
    if sums:
        speed["tokens_per_second"] = sums["num_tokens"] / sums["generate_seconds"]
        speed["passes_per_token"] = sums["num_backbone_passes"] / sums["num_tokens"]
        if sums["speech_seconds"]:
            speed["real_time_factor"] = sums["total_seconds"] / sums["speech_seconds"]
        speed["tokens_per_answer"] = sums["num_tokens"] / len(timed)
    return speed


def environment(root: Path) -> dict[str, Any]:
    """Return what the figures were made with: versions, machine, and commit of the code."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "commit": _git(root, "rev-parse", "HEAD") or "unknown",
        "changed_files": len((_git(root, "status", "--porcelain", "--untracked-files=no") or "").splitlines()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": gpus or [f"CPU, {torch.get_num_threads()} threads"],
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def published_rows(benchmark: str, path: Path = PUBLISHED) -> list[dict[str, Any]]:
    """Return the published figures of a benchmark: model, figure, value, source."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["benchmark"] == benchmark]


def as_json(outcomes: Sequence[Outcome], settings: Mapping[str, Any], surroundings: Mapping[str, Any]) -> dict:
    """Return the content of results.json; rates are fractions."""
    return {
        "settings": dict(settings),
        "environment": dict(surroundings),
        "results": [
            {
                "benchmark": outcome.benchmark.name,
                "task": outcome.benchmark.task,
                "language": outcome.benchmark.language,
                "mode": outcome.mode,
                "status": outcome.status,
                "note": outcome.note,
                "judge": outcome.judge,
                "num_samples": len(outcome.samples),
                "num_failed_samples": outcome.num_errors,
                "figures": {name: asdict(value) for name, value in outcome.figures.items()},
                "speed": outcome.speed,
            }
            for outcome in outcomes
        ],
        "published": [row for outcome in outcomes for row in published_rows(outcome.benchmark.name)],
    }


Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Return one table a task: benchmarks in their modes, published figures below each."""
    found = []
    for name, task in TASKS.items():
        chosen = [outcome for outcome in outcomes if outcome.benchmark.task == name]
        if chosen:
            found.append((task.title, _header(task), _rows(task, chosen)))
    return found


def _header(task: Task) -> list[str]:
    heard = ["without audio"] if task.speaks else []
    return ["benchmark", "mode", "samples", *(figure.title for figure in task.figures), *heard, "note"]


def _rows(task: Task, outcomes: Sequence[Outcome]) -> list[list[str]]:
    rows = []
    for benchmark in dict.fromkeys(outcome.benchmark.name for outcome in outcomes):
        chosen = [outcome for outcome in outcomes if outcome.benchmark.name == benchmark]
        rows += [_row(task, outcome) for outcome in chosen]
        language = chosen[0].benchmark.language
        for published in published_rows(benchmark):
            figures = [
                f"{100 * published['value']:.1f} %" if published["figure"] == figure.key(language) else ""
                for figure in task.figures
            ]
            rows.append([benchmark, published["model"], "", *figures, *[""] * task.speaks, published["source"]])
    return rows


def _row(task: Task, outcome: Outcome) -> list[str]:
    language = outcome.benchmark.language
    keys = [figure.key(language) for figure in task.figures] + ["without_audio"] * task.speaks
    figures = [str(outcome.figures[key]) if key in outcome.figures else "-" for key in keys]
    mode = f"recordings, as {outcome.judge} hears them" if outcome.mode == ORIGINAL else outcome.mode
    note = outcome.note if outcome.status == DONE else f"{outcome.status}: {outcome.note}"
    return [outcome.benchmark.name, mode, str(len(outcome.samples) or "-"), *figures, note]


def speed_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Return how fast each mode was, over all of its benchmarks alike."""
    rows = []
    for mode in dict.fromkeys(outcome.mode for outcome in outcomes):
        speeds = [outcome.speed for outcome in outcomes if outcome.mode == mode and outcome.speed]
        if speeds:
            means = {name: _mean(speed[name] for speed in speeds if name in speed) for name in SPEEDS}
            rows.append([mode, *("-" if means[name] is None else f"{means[name]:.3g}" for name in SPEEDS)])
    return ("Speed", ["mode", *SPEEDS.values()], rows) if rows else None


SPEEDS = {
    "tokens_per_second": "tokens/s",
    "passes_per_token": "backbone passes per token",
    "tokens_per_answer": "tokens per answer",
    "real_time_factor": "real-time factor",
}


def _mean(values) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def as_markdown(
    outcomes: Sequence[Outcome], settings: Mapping[str, Any], surroundings: Mapping[str, Any], chart: str | None = None
) -> str:
    """Return the content of results.md; `chart` is the path of the picture."""
    lines = [f"# Evaluation of {settings['model']}", ""]
    for title, header, rows in [*tables(outcomes), *filter(None, [speed_table(outcomes)])]:
        lines += [f"## {title}", "", *markdown_table(header, rows), ""]
    if chart:
        lines += [f"![quality over speed]({chart})", ""]
    lines += ["## Made with", "", *(f"* {name}: {value}" for name, value in surroundings.items()), ""]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]

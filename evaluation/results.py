"""Results of an evaluation: scored samples, metrics and speed by benchmark and mode; the content of results.json."""

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

from evaluation.metrics.score import Score, shorten
from evaluation.metrics.significance import compare
from evaluation.run_folder import Row, RowFile, changed_items, read_items, read_settings
from evaluation.suites import Benchmark, Item, fingerprints, limit_of
from evaluation.tasks import (
    TASKS,
    TEXT,
    TRANSCRIPT,
    WITHOUT_AUDIO,
    Task,
    Value,
    acceptance_scores,
    measured,
    speed_scores,
)
from vita_audio.optional import MissingPackageError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "results.json"
ANSWERS, TRANSCRIPTS, ALONE, FAILED = "answers", "transcripts", "alone", "failed"  # files of a benchmark in a mode
ORIGINAL = "original"  # in place of a mode: the recordings of people, transcribed by the same judge
DONE, MISSING, BROKEN, UNFINISHED = "done", "missing", "failed", "unfinished"
PUBLISHED = Path(__file__).parent / "published.json"


@dataclass(frozen=True)
class Answer:
    """The answer to an item, as recorded and judged.

    Attributes:
        said: The answer by TEXT and TRANSCRIPT.
        wav: File of its speech, None without speech.
        error: Why it failed.
        measures: Measures of its speech.
    """

    item: Item
    said: Mapping[str, str]
    wav: Path | None
    error: str | None
    measures: Mapping[str, float]


@dataclass
class Outcome:
    """The outcome of a benchmark in a mode.

    Attributes:
        note: Why there are no metrics, or a remark for the reader.
        scores: Scores of quality by key of the metric, in the order of the samples.
        speed: Scores of speed and length, likewise.
        acceptance: By depth, the share of verified predictions that the backbone accepted.
        metrics: Values of the scores with their intervals.
        against: Another model's name, and its outcome of the same benchmark and mode.
    """

    benchmark: Benchmark
    mode: str
    status: str
    note: str = ""
    samples: list[Answer] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    speed: dict[str, Score] = field(default_factory=dict)
    acceptance: dict[str, Score] = field(default_factory=dict)
    metrics: dict[str, Value] = field(default_factory=dict)
    judge: str | None = None
    against: tuple[str, Outcome] | None = None

    @property
    def task(self) -> Task:
        return TASKS[self.benchmark.task]

    @property
    def num_errors(self) -> int:
        return sum(sample.error is not None for sample in self.samples)

    def add_note(self, note: str) -> None:
        self.note = "; ".join(filter(None, [self.note, note]))

    def badness(self) -> list[float]:
        """Return 0 for perfect samples, more for worse ones, infinity for those that failed."""
        totals = [math.inf if sample.error is not None else 0.0 for sample in self.samples]
        for metric in self.task.own_metrics:
            score = self.scores[self.benchmark.key(metric.name)]
            for place, (part, whole) in enumerate(zip(score.numerators, score.denominators, strict=True)):
                rate = part / whole if whole else part
                totals[place] += 1 - rate if metric.more_is_better else rate
        return totals


def worst(outcomes: Sequence[Outcome], count: int) -> list[tuple[Outcome, Answer]]:
    """Return the `count` worst samples of some outcomes; perfect ones are left out."""
    found = [
        (badness, outcome, sample)
        for outcome in outcomes
        if outcome.scores
        for badness, sample in zip(outcome.badness(), outcome.samples, strict=True)
        if badness > 0
    ]
    return [(outcome, sample) for _, outcome, sample in sorted(found, key=lambda entry: -entry[0])[:count]]


def collect(output: Path, benchmark: Benchmark, items: Sequence[Item], mode: str) -> Outcome:
    """Score the answers recorded in the evaluation folder `output`; if some are missing, the outcome is unfinished."""
    folder = output / mode / benchmark.name
    failures = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{FAILED}-*.json"))]
    if failures:
        return Outcome(benchmark, mode, BROKEN, failures[0]["error"])
    answers, heard = RowFile(folder, ANSWERS).read(), RowFile(folder, TRANSCRIPTS).read()
    if mode == ORIGINAL:
        items = [item for item in items if item.recording]
    needs_transcript = TASKS[benchmark.task].speaks
    done = {name for name, row in answers.items() if not (needs_transcript and row["wav"]) or name in heard}
    if num_waiting := sum(item.id not in done for item in items):
        note = f"{len(items) - num_waiting} of {len(items)} samples are done; run the command again"
        return Outcome(benchmark, mode, UNFINISHED, note)
    samples = [_sample(item, answers[item.id], heard.get(item.id, {}), folder) for item in items]
    judge = next((row["judge"] for row in heard.values()), None)
    outcome = Outcome(benchmark, mode, DONE, samples=samples, judge=judge)
    if failed := [sample.error for sample in samples if sample.error is not None]:
        if mode == ORIGINAL:  # the judge's own error would look larger, and the model better in comparison
            counts = f"{len(failed)} of {len(samples)}"
            return Outcome(
                benchmark, mode, BROKEN, f"{counts} recordings cannot be transcribed, the first: {failed[0]}"
            )
        if len(failed) == len(samples):
            return Outcome(benchmark, mode, BROKEN, f"all {len(samples)} samples failed, the first: {failed[0]}")
        outcome.note = f"{outcome.num_errors} samples failed and count as wrong"
    if mode != ORIGINAL:
        alone = RowFile(folder, ALONE).read()
        rows = [answers[item.id] for item in items]
        outcome.speed, outcome.acceptance = speed_scores(rows, list(alone.values())), acceptance_scores(rows)
    _score(outcome)
    return outcome


def set_against(outcomes: Sequence[Outcome], items: Mapping[str, Sequence[Item]], folder: Path) -> None:
    """Add to each outcome the other model's outcome from `folder`, or note why the two cannot be compared.

    Args:
        items: Items by name of the benchmark.
    Raises: FileNotFoundError if the folder holds no evaluation.
    """
    name, known = read_settings(folder)["model"], read_items(folder)
    for outcome in outcomes:
        if outcome.status != DONE or outcome.mode == ORIGINAL:
            continue
        chosen = items[outcome.benchmark.name]
        if changed := changed_items(known.get(outcome.benchmark.name, {}), fingerprints(chosen)):
            outcome.add_note(f"not compared with {name}, which had other data: {shorten(changed)}")
            continue
        other = collect(folder, outcome.benchmark, chosen, outcome.mode)
        if other.status != DONE:
            outcome.add_note(f"not compared with {name}, whose {outcome.mode} is {other.status}: {other.note}")
        elif other.judge != outcome.judge:
            outcome.add_note(f"not compared with {name}, which was transcribed by {other.judge}")
        else:
            outcome.against = (name, other)


def _sample(item: Item, answer: Row, heard: Row, folder: Path) -> Answer:
    said = {TEXT: answer["text"], TRANSCRIPT: heard.get("transcript", "")}
    wav = folder / answer["wav"] if answer["wav"] else None
    return Answer(item, said, wav, answer.get("error") or heard.get("error"), heard.get("measures", {}))


def _score(outcome: Outcome) -> None:
    """Compute the scores and metrics; if one cannot be computed, for example without its package, a note says so."""
    benchmark, samples = outcome.benchmark, outcome.samples
    items = [sample.item for sample in samples]
    for metric in outcome.task.metrics:
        is_written = outcome.mode == ORIGINAL and metric.source != TRANSCRIPT
        if is_written or (metric.is_public and benchmark.rule is None):
            continue
        try:
            score = metric.rate([sample.said[metric.source] for sample in samples], items, benchmark)
        except (MissingPackageError, ValueError) as error:
            outcome.add_note(str(error))
            if not metric.is_public:
                outcome.status, outcome.scores = BROKEN, {}
                return
        else:
            outcome.scores[benchmark.key(metric.name)] = score
    if outcome.task.speaks:
        ids = [item.id for item in items]
        if outcome.mode != ORIGINAL:
            outcome.scores[WITHOUT_AUDIO] = Score.of_mean([sample.wav is None for sample in samples], ids)
        outcome.scores |= measured([sample.measures for sample in samples], ids)
    outcome.metrics = {key: Value.of(key, score) for key, score in outcome.scores.items()}


def comparisons(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return paired tests on the same samples: every mode against the first one, and against the other model."""
    found = []
    for name in dict.fromkeys(outcome.benchmark.name for outcome in outcomes):
        modes = [one for one in outcomes if one.benchmark.name == name and one.mode != ORIGINAL and one.scores]
        for other in modes[1:]:
            found += _compared(other, modes[0], modes[0].mode)
        for one in modes:
            if one.against:
                model, other = one.against
                found += _compared(one, other, f"{other.mode} of {model}")
    return found


def _compared(one: Outcome, other: Outcome, name: str) -> list[dict[str, Any]]:
    runs = {"benchmark": one.benchmark.name, "mode": one.mode, "against": name}
    keys = [key for key in one.scores if key in other.scores]
    return [runs | {"figure": key} | asdict(compare(one.scores[key], other.scores[key])) for key in keys]


def pooled(scores: Sequence[Score]) -> float:
    """Return the rate of the samples of several scores together."""
    return sum(score.numerators.sum() for score in scores) / sum(score.denominators.sum() for score in scores)


def read_outcomes(folder: Path, benchmarks: Sequence[Benchmark], mode: str) -> list[Outcome]:
    """Return the outcomes of finished demo benchmarks in the folder of an evaluation.

    Raises: FileNotFoundError if there is no evaluation; ValueError if one of the benchmarks is not finished.
    """
    settings = read_settings(folder)
    outcomes = []
    for benchmark in benchmarks:
        items = benchmark.items(Path(settings["corpus"]), limit_of(settings["limit"], benchmark.name))
        outcomes.append(outcome := collect(folder, benchmark, items, mode))
        if outcome.status != DONE:
            raise ValueError(f"{folder}: {benchmark.name} is {outcome.status} in mode {mode} ({outcome.note})")
    return outcomes


def environment() -> dict[str, Any]:
    """Return the software versions, the machine, and the commit of the code."""
    import torch
    import transformers

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "changed_files": len((_git("status", "--porcelain", "--untracked-files=no") or "").splitlines()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": ", ".join(gpus) or f"CPU, {torch.get_num_threads()} threads",
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def published_rows(outcomes: Sequence[Outcome], path: Path = PUBLISHED) -> list[dict[str, Any]]:
    """Return published values on the benchmarks that have metrics here: model, figure, value, source."""
    names = {outcome.benchmark.name for outcome in outcomes if outcome.metrics}
    return [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row["benchmark"] in names]


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
                "figures": {name: asdict(value) for name, value in outcome.metrics.items()},
                "speed": {name: asdict(Value.of(name, score)) for name, score in outcome.speed.items()},
                "acceptance": {name: asdict(Value.of(name, score)) for name, score in outcome.acceptance.items()},
            }
            for outcome in outcomes
        ],
        "comparisons": comparisons(outcomes),
        "published": published_rows(outcomes),
    }

"""Put the runs of tools/demo/ablations.py side by side: quality and speed in one table and one chart.

    python -m tools.demo.ablation_report --folder outputs/ablations

Figures have 95 % intervals; every run is compared with the first one on the same samples. Writes ablations.json,
ablations.md and ablations.png into the folder.
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.demo import write_json
from evaluation.figures import Figure, Value
from evaluation.metrics.significance import compare
from evaluation.reporting.page import pooled
from evaluation.reporting.plots import draw_ablations
from evaluation.reporting.tables import markdown_table
from evaluation.results import DONE, Outcome, collect, environment
from evaluation.run import ROOT, load_items
from evaluation.run_folder import read_settings
from evaluation.suites import DEMO
from vita_audio.errors import one_line_errors
from vita_audio.training.run_folder import RESULTS_FILE

VANILLA = "vanilla"
SPEEDS = {"passes_per_token": "backbone passes per token", "tokens_per_second": "tokens/s"}


@dataclass(frozen=True)
class Result:
    """A run in the mode it decoded in; `module_accuracy`: mean share of targets that its modules found in training."""

    name: str
    num_modules: int
    schedule: str
    kl_weight: float
    outcomes: Sequence[Outcome]
    module_accuracy: float

    def figures(self) -> Iterator[tuple[str, Figure, Outcome]]:
        """Yield our own figures with a title for each."""
        for outcome in self.outcomes:
            for figure in outcome.task.own_figures:
                yield f"{outcome.task.title}: {figure.title}", figure, outcome

    def values(self) -> dict[str, Value]:
        return {title: one.figures[figure.key(one.benchmark.language)] for title, figure, one in self.figures()}

    def speeds(self) -> dict[str, float]:
        return {key: pooled([outcome.speed[key] for outcome in self.outcomes]) for key in SPEEDS}

    def errors(self) -> dict[str, tuple[float, float, float]]:
        """Return the share that is wrong and its interval, by title."""
        rates = {}
        for title, figure, outcome in self.figures():
            value = outcome.figures[figure.key(outcome.benchmark.language)]
            rate = (value.value, value.low, value.high)
            wrong = (1 - value.value, 1 - value.high, 1 - value.low)
            rates[title.replace("right", "wrong")] = wrong if figure.more_is_better else rate
        return rates

    def point(self) -> dict[str, Any]:
        """Return what the chart shows of this run."""
        return {
            "label": str(self.num_modules),
            "series": self.schedule + (f", KL {self.kl_weight:g}" if self.kl_weight else ""),
            "tokens_per_pass": 1 / self.speeds()["passes_per_token"],
            "errors": self.errors(),
        }


def read_results(folder: Path) -> list[Result]:
    """Return all runs of the plan, and after the first one the same model by its backbone alone.

    Raises: FileNotFoundError without a plan; ValueError if an evaluation is not whole.
    """
    path = folder / "plan.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}; python -m tools.demo.ablations writes it")
    results = []
    for row in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        results.append(_read_run(folder, row, row["schedule"]))
        if (folder / row["evaluation"] / VANILLA).is_dir():
            results.append(_read_run(folder, row, VANILLA))
    return results


def _read_run(folder: Path, row: Mapping[str, Any], mode: str) -> Result:
    evaluation = folder / row["evaluation"]
    settings = read_settings(evaluation)
    chosen = Namespace(corpus=Path(settings["corpus"]), limit=settings["limit"])
    outcomes = [collect(evaluation, benchmark, load_items(benchmark, chosen), mode) for benchmark in DEMO]
    for outcome in outcomes:
        if outcome.status != DONE:
            raise ValueError(f"{evaluation}: {outcome.benchmark.name} is {outcome.status} ({outcome.note})")
    training = json.loads((folder / row["training"] / RESULTS_FILE).read_text(encoding="utf-8"))
    modules = [value for name, value in training["final_accuracies"].items() if name != "main"]
    name = row["name"] if mode == row["schedule"] else f"{row['name']}, {mode}"
    return Result(name, row["num_modules"], mode, row["kl_weight"], outcomes, fmean(modules))


def differences(result: Result, first: Result) -> dict[str, dict[str, float]]:
    """Return paired comparisons with the first run, by title of the figure."""
    pairs = zip(result.figures(), first.figures(), strict=True)
    return {
        title: asdict(compare(*(one.scores[figure.key(one.benchmark.language)] for one in (outcome, other))))
        for (title, figure, outcome), (_, _, other) in pairs
    }


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {
            "name": result.name,
            "num_modules": result.num_modules,
            "schedule": result.schedule,
            "kl_weight": result.kl_weight,
            "module_accuracy": result.module_accuracy,
            "figures": {title: asdict(value) for title, value in result.values().items()},
            "speed": result.speeds(),
            "less_the_first": {} if result is results[0] else differences(result, results[0]),
        }
        for result in results
    ]


def as_markdown(results: Sequence[Result], surroundings: Mapping[str, Any]) -> str:
    titles = list(results[0].values())
    header = ["modules", "schedule", "KL weight", *titles, *SPEEDS.values(), "modules right in training"]
    rows = []
    for result in results:
        speeds = result.speeds()
        values = result.values()
        own = [f"{speeds['passes_per_token']:.3f}", f"{speeds['tokens_per_second']:.0f}"]
        what = [str(result.num_modules), result.schedule, f"{result.kl_weight:g}"]
        rows.append([*what, *(str(values[title]) for title in titles), *own, f"{100 * result.module_accuracy:.1f} %"])
    pairs = [
        [
            result.name,
            title,
            f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})",
            f"{row['p_value']:.3f}",
        ]
        for result in results[1:]
        for title, row in differences(result, results[0]).items()
    ]
    lines = ["# Ablations", "", *markdown_table(header, rows), "", "![errors over speed](ablations.png)", ""]
    lines += ["Shares with 95 % intervals; speed of batches, comparable within this table only.", ""]
    lines += [f"## Less {results[0].name}, on the same samples", ""]
    lines += markdown_table(["run", "figure", "points, 95 % interval", "p"], pairs)
    return "\n".join([*lines, "", *(f"* {name}: {value}" for name, value in surroundings.items()), ""])


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="output of tools/demo/ablations.py")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    folder = parse_arguments(arguments).folder
    results = read_results(folder)
    surroundings = environment(ROOT)
    draw_ablations([result.point() for result in results], folder / "ablations.png")
    (folder / "ablations.md").write_text(as_markdown(results, surroundings), encoding="utf-8")
    write_json(folder / "ablations.json", {"runs": as_json(results), "environment": surroundings})


if __name__ == "__main__":
    with one_line_errors("tools.demo.ablation_report"):
        main()

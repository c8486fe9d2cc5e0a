"""Compare the runs of tools/demo/ablations.py: quality and speed in one table and one plot.

    python -m tools.demo.ablation_report --folder outputs/ablations

Metrics have 95 % intervals; each run is compared with the first one on the same samples. Writes ablations.json,
ablations.md and ablations.png to the folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.metrics.significance import compare
from evaluation.reporting.page import DIFFERENCE_HEADER, difference_cells, render
from evaluation.reporting.plots import draw_runs
from evaluation.results import environment, pooled, read_outcomes
from evaluation.suites import DEMO
from evaluation.tasks import PASSES_PER_TOKEN, SPEEDS
from tools.demo.outcomes import Outcomes
from vita_audio.command_line import OneLineParser
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json, write_text

TEMPLATE = Path(__file__).with_name("ablations_template.md")
VANILLA = "vanilla"
SPEED_KEYS = (PASSES_PER_TOKEN, "tokens_per_second")
JSON_FIELDS = ("name", "num_modules", "schedule", "kl_weight", "option", "module_accuracy")


@dataclass(frozen=True)
class Result(Outcomes):
    """A run in one mode; `module_accuracy` is the mean accuracy of the MTP modules on the training targets."""

    name: str
    num_modules: int
    schedule: str
    kl_weight: float
    option: str
    module_accuracy: float

    def speeds(self) -> dict[str, float]:
        return {key: pooled([outcome.speed[key] for outcome in self.outcomes]) for key in SPEED_KEYS}

    def point(self) -> dict[str, Any]:
        """Return this run in the format of `draw_runs`."""
        return {
            "label": str(self.num_modules),
            "series": ", ".join(
                filter(None, [self.schedule, f"KL {self.kl_weight:g}" * (self.kl_weight > 0), self.option])
            ),
            "tokens_per_pass": 1 / self.speeds()[PASSES_PER_TOKEN],
            "errors": self.errors(),
        }


def read_results(folder: Path) -> list[Result]:
    """Return all runs of the plan, the first one also decoded by the backbone alone.

    Raises: FileNotFoundError without a plan; ValueError if an evaluation is not finished.
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
    from vita_audio.training.run_folder import RESULTS_FILE

    outcomes = read_outcomes(folder / row["evaluation"], DEMO, mode)
    training = json.loads((folder / row["training"] / RESULTS_FILE).read_text(encoding="utf-8"))
    modules = [value for name, value in training["final_accuracies"].items() if name != "main"]
    name = row["name"] if mode == row["schedule"] else f"{row['name']}, {mode}"
    return Result(outcomes, name, row["num_modules"], mode, row["kl_weight"], row["option"], fmean(modules))


def differences(result: Result, first: Result) -> dict[str, dict[str, float]]:
    """Return paired comparisons with the first run, by title of the metric."""
    others = first.scores()
    return {title: asdict(compare(score, others[title])) for title, score in result.scores().items()}


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the runs of ablations.json."""
    return [
        {
            **{name: getattr(result, name) for name in JSON_FIELDS},
            "figures": {title: asdict(value) for title, value in result.values().items()},
            "speed": result.speeds(),
            "less_the_first": {} if result is results[0] else differences(result, results[0]),
        }
        for result in results
    ]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("tools.demo.ablation_report", __doc__)
    parser.add_argument("--folder", required=True, type=Path, help="output of tools/demo/ablations.py")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    folder = parse_arguments(arguments).folder
    results = read_results(folder)
    surroundings = environment()
    draw_runs([result.point() for result in results], folder / "ablations.png", labels="MTP modules")
    rows = [
        [result.name, title, *difference_cells(row)]
        for result in results[1:]
        for title, row in differences(result, results[0]).items()
    ]
    values = {"results": results, "differences": rows, "difference_header": DIFFERENCE_HEADER}
    titles = [SPEEDS[key] for key in SPEED_KEYS]
    write_text(folder / "ablations.md", render(TEMPLATE, **values, speeds=titles, surroundings=surroundings))
    write_json(folder / "ablations.json", {"runs": as_json(results), "environment": surroundings})


if __name__ == "__main__":
    with one_line_errors("tools.demo.ablation_report"):
        main()

"""Evaluation of the checkpoints of a training run, by `evaluation.run` in a separate process.

The main process waits for the evaluation, and the other processes wait for the main process. A failed evaluation is
logged and counted, and training continues. Files in the run folder:

    evaluation/step-N/     answers, results.json, results.html and log.txt of the evaluation of checkpoint-N
    quality.json           metrics of all checkpoints, and the failures
    curves.png             gets a panel with these metrics
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from vita_audio.files.atomic import write_json
from vita_audio.files.checkpoint import read_json
from vita_audio.training.arguments import SpeechOptions
from vita_audio.training.curves import draw_run
from vita_audio.training.run_folder import EVALUATIONS, QUALITY_FILE
from vita_audio.training.settings import StageSettings

ROOT = Path(__file__).resolve().parents[2]  # the repository, where the package `evaluation` is found
PROGRAM = [sys.executable, "-m", "evaluation.run"]
PATH_OPTIONS = ("corpus", "data", "against", "audio-tokenizer-path", "audio-decoder-path", "audio-model-path")
RESULTS, LOG, FAILURE = "results.json", "log.txt", "failure.json"
LAUNCHER_VARIABLES = ("TORCHELASTIC_", "ACCELERATE_", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "RANK", "WORLD_SIZE")

logger = logging.getLogger(__name__)


class EvaluationError(RuntimeError):
    """An evaluation produced no metrics, or only some of them."""


def evaluation_command(settings: StageSettings, options: SpeechOptions) -> list[str]:
    """Return the command that evaluates a checkpoint of a stage, without --model and --output.

    Paths that exist become absolute, because the command runs in the repository.
    """
    values: dict[str, list[str | None]] = {
        "suite": options.eval_suite,
        "limit": [str(options.eval_limit)],
        "corpus": [options.eval_corpus],
        "data": [options.eval_data],
        "audio-tokenizer-type": [settings.audio_tokenizer_type],
        "audio-tokenizer-path": [settings.audio_tokenizer_path],
        "audio-model-path": [settings.audio_model_name_or_path],
    }
    values = {name: parts for name, parts in values.items() if parts != [None]}
    for entry in options.eval_options or ():
        name, _, value = entry.partition("=")
        values[name] = [*values.get(name, ()), value]
    for name in values.keys() & set(PATH_OPTIONS):
        values[name] = [os.path.abspath(part) if os.path.exists(part) else part for part in values[name]]
    return [*PROGRAM, *(part for name, parts in values.items() for part in (f"--{name}", *parts))]


def check_evaluation(command: Sequence[str]) -> None:
    """Check that `evaluation.run` accepts the command, and that its data and judges are available.

    Raises: ValueError with the last line that it prints, or if this installation has no `evaluation`.
    """
    if not (ROOT / "evaluation" / "run.py").is_file():
        raise ValueError(
            f"--eval_suite needs the folder evaluation of the repository next to the package vita_audio, got {ROOT}; "
            "train from a clone of the repository, installed with pip install -e"
        )
    result = _run([*command, "--model", "-", "--output", "-", "--check"], capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"--eval_suite: {last_line(result.stderr)}")


def _run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess:
    """Run a program of the repository as a process of its own, without the launcher's environment variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    return subprocess.run(command, cwd=ROOT, env=environment, **options)


def last_line(text: str) -> str:
    """Return the last line that is not blank."""
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "nothing printed")


def evaluate_checkpoint(command: Sequence[str], checkpoint: Path, output: Path, minutes: float) -> None:
    """Evaluate a checkpoint with the result of `evaluation_command`; its output is logged to a file in `output`.

    Raises: EvaluationError with the last printed line if the evaluation fails or exceeds the limit; OSError.
    """
    output.mkdir(parents=True, exist_ok=True)
    command = [*command, "--model", str(checkpoint.absolute()), "--output", str(output.absolute())]
    with (output / LOG).open("w", encoding="utf-8") as log:
        try:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            exit_code = _run(command, timeout=60 * minutes, **streams).returncode
        except subprocess.TimeoutExpired as error:
            raise EvaluationError(f"not done after {minutes:g} minutes, see {output / LOG}") from error
    if not (output / RESULTS).exists():
        printed = (output / LOG).read_text(encoding="utf-8", errors="replace")
        raise EvaluationError(f"exit code {exit_code}: {last_line(printed)}")
    try:
        results = read_json(output / RESULTS)["results"]
    except ValueError as error:
        (output / RESULTS).unlink()
        raise EvaluationError(f"{RESULTS} is damaged, see {output / LOG}") from error
    if failed := [row for row in results if row["status"] not in ("done", "missing")]:
        raise EvaluationError("; ".join(f"{row['benchmark']} {row['status']}: {row['note']}" for row in failed))


def read_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the metrics in the content of results.json that are shares, without those computed by public rules.

    Returns: `value`, `low` and `high` of each metric; keys are benchmark and metric, and the mode if there are several.
    """
    rows = [row for row in results["results"] if row["mode"] != "original"]
    several = len({row["mode"] for row in rows if row["mode"] != "-"}) > 1
    return {
        f"{row['benchmark']} {name}" + (f" {row['mode']}" if several else ""): {
            key: value[key] for key in ("value", "low", "high")
        }
        for row in rows
        for name, value in row["figures"].items()
        if value["is_share"] and not name.endswith("_reference")
    }


def collect_quality(folder: Path) -> dict[str, Any]:
    """Return the content of quality.json: metrics by step, and failures by step."""
    steps = sorted((int(path.name.removeprefix("step-")), path) for path in (folder / EVALUATIONS).glob("step-*"))
    metrics = {step: read_metrics(read_json(path / RESULTS)) for step, path in steps if (path / RESULTS).exists()}
    failures = {step: read_json(path / FAILURE)["reason"] for step, path in steps if (path / FAILURE).exists()}
    return {
        "metrics": [{"step": step, **values} for step, values in metrics.items() if values],
        "failures": [{"step": step, "reason": reason} for step, reason in failures.items()],
    }


class CheckpointEvaluation(TrainerCallback):
    """Evaluates every checkpoint when it is saved; a resumed run first evaluates its checkpoint if this was missed."""

    def __init__(self, command: Sequence[str], minutes: float):
        """Make a callback; arguments as in `evaluate_checkpoint`."""
        self._command = list(command)
        self._minutes = minutes

    def on_train_begin(self, args, state, control, **kwargs):
        folder = Path(args.output_dir)
        is_missed = not any((self._output(folder, state.global_step) / name).exists() for name in (RESULTS, FAILURE))
        if state.is_world_process_zero and state.global_step and is_missed:
            self._evaluate(folder, state)

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir)
        if state.is_world_process_zero:
            shutil.rmtree(self._output(folder, state.global_step), ignore_errors=True)  # of an earlier checkpoint
            self._evaluate(folder, state)

    def _output(self, folder: Path, step: int) -> Path:
        return folder / EVALUATIONS / f"step-{step}"

    def _evaluate(self, folder: Path, state: Any) -> None:
        step = state.global_step
        try:
            output = self._output(folder, step)
            try:
                evaluate_checkpoint(self._command, folder / f"checkpoint-{step}", output, self._minutes)
            except (EvaluationError, OSError) as error:
                logger.warning("the evaluation of step %d failed: %s", step, error)
                write_json(output / FAILURE, {"reason": str(error)})
            quality = collect_quality(folder)
            write_json(folder / QUALITY_FILE, quality)
            if any("loss" in entry for entry in state.log_history):
                draw_run(folder, state.log_history)
            logger.info("step %d: %s", step, _described(quality["metrics"], step))
        except Exception:  # a full disk or a damaged file must not end the training
            logger.exception("the evaluation of step %d failed", step)


def _described(rows: Sequence[Mapping[str, Any]], step: int) -> str:
    found = [row for row in rows if row["step"] == step]
    shares = [f"{name} {100 * value['value']:.1f} %" for row in found for name, value in row.items() if name != "step"]
    return ", ".join(shares) or "no metrics"

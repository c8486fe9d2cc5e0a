"""Evaluation of the checkpoints of a training run, by `evaluation.run` in a process of its own.

The main process waits for it, the others wait for the main process. Whatever goes wrong in an evaluation costs its
figures and nothing else: it is logged, counted, and the training goes on. In the folder of the run:

    evaluation/step-N/     answers, results.json, results.html, and log.txt of the evaluation of checkpoint-N
    quality.json           the figures of all of them, and what failed
    curves.png             gets a panel with these figures
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from vita_audio.training.arguments import ModelArguments, SpeechTrainingArguments
from vita_audio.training.curves import draw_run
from vita_audio.training.run_folder import EVALUATIONS, QUALITY_FILE

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "evaluation.run"]
RESULTS, LOG, FAILURE = "results.json", "log.txt", "failure.json"
OF_LAUNCHERS = ("TORCHELASTIC_", "ACCELERATE_", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "RANK", "WORLD_SIZE")

logger = logging.getLogger(__name__)


class EvaluationError(RuntimeError):
    """An evaluation has no figures, or not all."""


def evaluation_command(model_arguments: ModelArguments, training_arguments: SpeechTrainingArguments) -> list[str]:
    """Return the command that evaluates a checkpoint, but for --model and --output."""
    options: dict[str, Sequence[str]] = {
        "suite": training_arguments.eval_suite,
        "limit": [str(training_arguments.eval_limit)],
        "audio-tokenizer-type": [model_arguments.audio_tokenizer_type],
    }
    for name, path in (
        ("corpus", training_arguments.eval_corpus),
        ("data", training_arguments.eval_data),
        ("audio-tokenizer-path", model_arguments.audio_tokenizer_path),
        ("audio-model-path", model_arguments.audio_model_name_or_path),
    ):
        if path:
            options[name] = [path]
    for entry in training_arguments.eval_options or ():
        name, _, value = entry.partition("=")
        options[name] = [*options.get(name, ()), value]
    return [*PROGRAM, *(part for name, values in options.items() for part in (f"--{name}", *values))]


def check_evaluation(command: Sequence[str]) -> None:
    """See before the training whether the program takes the command, and whether data and judges are there.

    Raises: ValueError with its last words if not.
    """
    result = subprocess.run(
        [*command, "--model", "-", "--output", "-", "--check"], env=own_environment(), capture_output=True, text=True
    )
    if result.returncode:
        raise ValueError(f"--eval_suite: {last_line(result.stderr)}")


def own_environment() -> dict[str, str]:
    """Return the environment of a program of this repository that is not one of the processes of the training."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "nothing printed")


def evaluate_checkpoint(command: Sequence[str], checkpoint: Path, output: Path, minutes: float) -> None:
    """Run the evaluation of a checkpoint to its end; what it prints goes to a file in `output`.

    Raises: EvaluationError with its last words if it fails or takes too long; OSError.
    """
    output.mkdir(parents=True, exist_ok=True)
    command = [*command, "--model", str(checkpoint), "--output", str(output)]
    with (output / LOG).open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command,
                env=own_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=60 * minutes,
            )
        except subprocess.TimeoutExpired as error:
            raise EvaluationError(f"not done after {minutes:g} minutes, see {output / LOG}") from error
    if not (output / RESULTS).exists():
        said = (output / LOG).read_text(encoding="utf-8", errors="replace")
        raise EvaluationError(f"exit code {done.returncode}: {last_line(said)}")
    try:
        results = read_json(output / RESULTS)["results"]
    except ValueError as error:
        (output / RESULTS).unlink()
        raise EvaluationError(f"{RESULTS} is damaged: {error}") from error
    if failed := [row for row in results if row["status"] not in ("done", "missing")]:
        raise EvaluationError("; ".join(f"{row['benchmark']} {row['status']}: {row['note']}" for row in failed))


def read_figures(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the shares that an evaluation found, with intervals, but those of public rules; by benchmark and figure.

    With several modes the mode stands behind.
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
    """Return the content of quality.json: figures by step, and failures by step."""
    steps = sorted((int(path.name.removeprefix("step-")), path) for path in (folder / EVALUATIONS).glob("step-*"))
    figures = {step: read_figures(read_json(path / RESULTS)) for step, path in steps if (path / RESULTS).exists()}
    failures = {step: read_json(path / FAILURE)["reason"] for step, path in steps if (path / FAILURE).exists()}
    return {
        "figures": [{"step": step, **values} for step, values in figures.items() if values],
        "failures": [{"step": step, "reason": reason} for step, reason in failures.items()],
    }


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


class CheckpointEvaluation(TrainerCallback):
    """Evaluates a checkpoint as soon as it is saved, and after a resumption the one resumed from if that was missed."""

    def __init__(self, command: Sequence[str], minutes: float):
        """Take the command of `evaluation_command`, and the minutes after which an evaluation is ended."""
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
            shutil.rmtree(self._output(folder, state.global_step), ignore_errors=True)  # of a checkpoint written anew
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
                (output / FAILURE).write_text(json.dumps({"reason": str(error)}) + "\n", encoding="utf-8")
            quality = collect_quality(folder)
            (folder / QUALITY_FILE).write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
            if any("loss" in entry for entry in state.log_history):
                draw_run(folder, state.log_history)
            logger.info("step %d: %s", step, _described(quality["figures"], step))
        except Exception:  # a full disk, a damaged file: nothing here is worth the training
            logger.exception("the evaluation of step %d failed", step)


def _described(figures: Sequence[Mapping[str, Any]], step: int) -> str:
    found = [row for row in figures if row["step"] == step]
    shares = [f"{name} {100 * value['value']:.1f} %" for row in found for name, value in row.items() if name != "step"]
    return ", ".join(shares) or "no figures"

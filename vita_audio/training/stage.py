"""A training stage: preparation from parsed flags, and the files of its result."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging as transformers_logging

from vita_audio.data.code_noise import CodeNoise
from vita_audio.data.collator import PackCollator
from vita_audio.errors import RunError, is_lost_process
from vita_audio.files.atomic import write_json
from vita_audio.models.adapters import describe_base
from vita_audio.plots import new_figure
from vita_audio.training.arguments import Arguments, argument_values
from vita_audio.training.checkpoint_evaluation import CheckpointEvaluation, check_evaluation, evaluation_command
from vita_audio.training.checkpoints import WRITE_ERRORS, check_space, checkpoint_bytes, delete_leftovers
from vita_audio.training.curves import read_quality, summarise
from vita_audio.training.report import RunReport, write_report
from vita_audio.training.run_folder import (
    ARGUMENTS_FILE,
    DATA_FILE,
    NUM_PROCESSES,
    QUALITY_FILE,
    RESULTS_FILE,
    check_arguments,
    clear_run,
    inspect_run_folder,
    last_checkpoint,
)
from vita_audio.training.settings import stage_settings
from vita_audio.training.stage_data import load_stage_data
from vita_audio.training.stage_model import load_stage_model, whole_models
from vita_audio.training.trainer import SpeechTrainer, SpeechTrainingArguments
from vita_audio.training.world_size import load_universal, make_universal, needs_universal

logger = logging.getLogger(__name__)


def prepare(arguments: Arguments) -> tuple[SpeechTrainer | None, str | None]:
    """Do everything that comes before training.

    Returns: The trainer (None if the run is finished) and the checkpoint to resume from (None for a new run).
    Raises: FileExistsError, FileNotFoundError, ValueError, MissingPackageError for input that cannot be trained on.
    """
    _, data_arguments, training_arguments = arguments
    settings = stage_settings(*arguments)
    start_logging(training_arguments)
    new_figure(1, 1)  # without matplotlib this fails now, not when the curves are drawn
    if training_arguments.deepspeed:
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False)  # ZeRO-3 needs it when the model is loaded
    if not open_run(arguments):
        logger.info("this run is finished, see %s; --overwrite_output_dir restarts it", training_arguments.output_dir)
        return None, None
    checkpoint = last_checkpoint(training_arguments.output_dir)
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
        fit_world_size(checkpoint, training_arguments)
    callbacks = [RunReport()]
    if training_arguments.eval_suite:
        command = evaluation_command(settings, training_arguments)
        if training_arguments.process_index == 0:
            check_evaluation(command)
        callbacks.append(CheckpointEvaluation(command, training_arguments.eval_minutes))
    set_seed(training_arguments.seed)
    # the main process of each machine makes the packs, which the others then read
    with whole_models(training_arguments), training_arguments.main_process_first(local=True, desc="packing"):
        is_main = training_arguments.local_process_index == 0
        data = load_stage_data(settings, is_main=is_main, device=str(training_arguments.device))
    if training_arguments.process_index == 0:
        write_json(Path(training_arguments.output_dir) / DATA_FILE, data.report.to_json())
    trainer = SpeechTrainer(
        model=load_stage_model(settings, data.tokenizer, data.audio_tokenizer),
        args=training_arguments,
        train_dataset=data.packs,
        data_collator=PackCollator(data.tokenizer.pad_id, data.front_end, data.files),
        processing_class=data.tokenizer.base,
        front_end=data.front_end,
        code_noise=CodeNoise(data_arguments.audio_code_noise, data.tokenizer.code_ids),
        curriculum=settings.curriculum,
        adapter_base=describe_base(settings.model_name_or_path) if settings.lora else None,
        callbacks=callbacks,
    )
    if training_arguments.process_index == 0:
        check_disk_space(trainer)
    return trainer, str(checkpoint) if checkpoint else None


def check_disk_space(trainer: SpeechTrainer) -> None:
    """Check that there is room for the checkpoints of a run and its result. Raises: RunError."""
    arguments = trainer.args
    has_adapter = trainer.adapter_base is not None
    weights, checkpoint = checkpoint_bytes(
        trainer.model, deepspeed=trainer.is_deepspeed_enabled, has_adapter=has_adapter
    )
    check_space(Path(arguments.output_dir), weights, checkpoint, num_checkpoints(arguments))


def num_checkpoints(arguments: SpeechTrainingArguments) -> int:
    """Return the most checkpoints that a run has at a time: those it keeps, and the one that it writes."""
    if arguments.save_strategy == SaveStrategy.NO:
        return 0
    if arguments.save_strategy == SaveStrategy.STEPS and arguments.max_steps > 0:
        steps = arguments.save_steps if arguments.save_steps >= 1 else arguments.save_steps * arguments.max_steps
        saves = max(int(arguments.max_steps / max(steps, 1)), 1)
    else:
        saves = max(int(arguments.num_train_epochs), 1)
    return min(saves, (arguments.save_total_limit or saves) + 1)


def fit_world_size(checkpoint: Path, training_arguments: SpeechTrainingArguments) -> None:
    """Prepare to resume from a checkpoint of another number of processes. Raises: ValueError if that is impossible."""
    zero3 = training_arguments.hf_deepspeed_config.is_zero3() if training_arguments.deepspeed else None
    if needs_universal(checkpoint, training_arguments.world_size, zero3=zero3):
        with training_arguments.main_process_first(local=False, desc="converting the checkpoint"):
            make_universal(checkpoint)
        load_universal(training_arguments.hf_deepspeed_config.config)


def start_logging(training_arguments: SpeechTrainingArguments) -> None:
    """Log messages of this package from the main process, and warnings from every process."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stdout)
    if training_arguments.process_index == 0:
        logging.getLogger("vita_audio").setLevel(logging.INFO)
    transformers_logging.set_verbosity_warning()


def open_run(arguments: Arguments) -> bool:
    """Check the output folder and mark it as the folder of this run; return False if the run is finished.

    Raises: FileExistsError if the folder holds other files or a run with other arguments.
    """
    training_arguments = arguments[2]
    values = argument_values(arguments) | {NUM_PROCESSES: training_arguments.world_size}
    folder = Path(training_arguments.output_dir)
    overwrite = training_arguments.overwrite_output_dir
    state = "new" if overwrite else inspect_run_folder(folder)
    if state != "new":
        check_arguments(folder, values, state)
    training_arguments.distributed_state.wait_for_everyone()  # every process has looked before one writes
    if state == "finished":
        return False
    if training_arguments.process_index == 0:
        if overwrite:
            clear_run(folder)
        delete_leftovers(folder)
        write_json(folder / ARGUMENTS_FILE, values)
        logger.info("arguments: %s", json.dumps(argument_values(arguments, changed_only=True)))
    training_arguments.distributed_state.wait_for_everyone()
    return True


def finish(trainer: SpeechTrainer) -> None:
    """Save the model, draw the curves and write the results, which mark the run as finished.

    Raises: RunError if a file cannot be written.
    """
    trainer.model.config.use_cache = True  # training turned it off
    try:
        trainer.save_model()
        trainer.save_state()
        if trainer.is_world_process_zero():
            write_results(Path(trainer.args.output_dir), trainer.state.log_history)
    except WRITE_ERRORS as error:
        if is_lost_process(error):
            raise
        raise RunError(
            f"the result could not be written to {trainer.args.output_dir} ({error}); make room, then run the same "
            "command, which continues from the last checkpoint"
        ) from error
    trainer.accelerator.wait_for_everyone()


def write_results(folder: Path, log_history: Sequence[dict[str, Any]]) -> None:
    """Write the report and the summary of a run, which marks it as finished."""
    write_report(folder, log_history)
    results = summarise(log_history)
    if quality := read_quality(folder):
        failures = quality["failures"]
        results["quality"] = {"last": (quality["metrics"] or [None])[-1], "num_failed": len(failures)}
        if failures:
            logger.warning("%d evaluations failed, see %s", len(failures), folder / QUALITY_FILE)
    write_json(folder / RESULTS_FILE, results)
    logger.info("trained %d steps in %.1f minutes: %s", results["steps"], results["minutes"], folder)

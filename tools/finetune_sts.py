"""Train one stage of a speech language model; `scripts/deepspeed/sts_qwen25` holds the four stages.

    torchrun --nproc_per_node 8 tools/finetune_sts.py --model_name_or_path ... --dataset_name data.yaml --output_dir ...
    python tools/finetune_sts.py arguments.json

The output folder gets the model, its tokenizer, curves.png and train_results.json. The same command again continues a
run that was stopped, and does nothing when it is done; with another model, data or learning rate it is refused.
With --eval_suite every checkpoint is evaluated, see vita_audio/training/checkpoint_evaluation.py.
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from vita_audio.data.collator import PackCollator
from vita_audio.errors import one_line_errors
from vita_audio.training.arguments import Arguments, SpeechTrainingArguments, argument_values, parse_arguments
from vita_audio.training.checkpoint_evaluation import CheckpointEvaluation, check_evaluation, evaluation_command
from vita_audio.training.curves import draw_run, read_quality, summarise
from vita_audio.training.run_folder import (
    ARGUMENTS_FILE,
    NUM_PROCESSES,
    QUALITY_FILE,
    RESULTS_FILE,
    RunState,
    check_arguments,
    clear_run,
    inspect_run_folder,
    last_checkpoint,
)
from vita_audio.training.stage_data import load_stage_data
from vita_audio.training.stage_model import load_stage_model, whole_models
from vita_audio.training.trainer import SpeechTrainer

logger = logging.getLogger("finetune_sts")


def main(argv: Sequence[str] | None = None) -> None:
    with one_line_errors("finetune_sts.py"):
        trainer, checkpoint = prepare(argv)
    if trainer is not None:
        trainer.train(resume_from_checkpoint=checkpoint)
        finish(trainer)


def prepare(argv: Sequence[str] | None) -> tuple[SpeechTrainer | None, str | None]:
    """Do all that comes before training; return the trainer (None: the run is done) and what to resume from."""
    arguments = parse_arguments(argv)
    model_arguments, data_arguments, training_arguments = arguments
    start_logging(training_arguments)
    if training_arguments.deepspeed:
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False)  # ZeRO-3 needs it when the model is loaded
    if not open_run(arguments):
        logger.info("this run is done, see %s; --overwrite_output_dir trains it again", training_arguments.output_dir)
        return None, None
    checkpoint = last_checkpoint(training_arguments.output_dir, training_arguments.max_steps)
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
    evaluation = evaluation_command(model_arguments, training_arguments) if training_arguments.eval_suite else None
    if evaluation and training_arguments.process_index == 0:
        check_evaluation(evaluation)
    set_seed(training_arguments.seed)

    with whole_models(training_arguments):
        data = load_stage_data(model_arguments, data_arguments, training_arguments)
    model = load_stage_model(
        model_arguments,
        data.tokenizer,
        dtype=weight_dtype(training_arguments),
        seed=training_arguments.seed,
        audio_tokenizer=data.audio_tokenizer,
    )
    trainer = SpeechTrainer(
        model=model,
        args=training_arguments,
        train_dataset=data.packs,
        data_collator=PackCollator(
            data.tokenizer.pad_id,
            data.front_end,
            code_noise=data_arguments.audio_code_noise,
            code_ids=data.tokenizer.code_ids,
        ),
        processing_class=data.tokenizer.base,
        front_end=data.front_end,
        callbacks=[CheckpointEvaluation(evaluation, training_arguments.eval_minutes)] if evaluation else None,
    )
    return trainer, str(checkpoint) if checkpoint else None


def start_logging(training_arguments: SpeechTrainingArguments) -> None:
    """Log what we do from the main process; warnings from everybody."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stdout)
    if training_arguments.process_index == 0:
        for ours in (logger, logging.getLogger("vita_audio")):
            ours.setLevel(logging.INFO)
    transformers_logging.set_verbosity_warning()


def open_run(arguments: Arguments) -> bool:
    """Look at the output folder and mark it as that of this run; return False if the run is done.

    Raises: FileExistsError if the folder holds something else or a run with other arguments.
    """
    training_arguments = arguments[2]
    values = argument_values(arguments) | {NUM_PROCESSES: training_arguments.world_size}
    folder = Path(training_arguments.output_dir)
    overwrite = training_arguments.overwrite_output_dir
    state = RunState.NEW if overwrite else inspect_run_folder(folder)
    if state is not RunState.NEW:
        check_arguments(folder, values, state)
    training_arguments.distributed_state.wait_for_everyone()  # all have looked before one writes
    if state is RunState.FINISHED:
        return False
    if training_arguments.process_index == 0:
        if overwrite:
            clear_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ARGUMENTS_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        logger.info("arguments: %s", json.dumps(argument_values(arguments, changed_only=True)))
    training_arguments.distributed_state.wait_for_everyone()
    return True


def weight_dtype(training_arguments: SpeechTrainingArguments) -> torch.dtype:
    """Return what weights are loaded in: DeepSpeed keeps a float32 copy of bfloat16 weights, nothing else does."""
    return torch.bfloat16 if training_arguments.bf16 and training_arguments.deepspeed else torch.float32


def finish(trainer: SpeechTrainer) -> None:
    """Save the model, draw the curves and write the results, which mark the run as done."""
    trainer.model.config.use_cache = True  # which training turns off
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        draw_run(folder, trainer.state.log_history)
        results = summarise(trainer.state.log_history)
        if quality := read_quality(folder):
            failures = quality["failures"]
            results["quality"] = {"last": (quality["figures"] or [None])[-1], "num_failed": len(failures)}
            if failures:
                logger.warning("%d evaluations failed, see %s", len(failures), folder / QUALITY_FILE)
        (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        logger.info("trained %d steps in %.1f minutes: %s", results["steps"], results["minutes"], folder)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()

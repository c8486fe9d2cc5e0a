"""Train one stage of a speech language model; `scripts/deepspeed/sts_qwen25` holds the four stages.

    torchrun --nproc_per_node 8 tools/finetune_sts.py --model_name_or_path ... --dataset_name data.yaml --output_dir ...
    python tools/finetune_sts.py arguments.json

The output folder receives the model, its tokenizer, curves.png and train_results.json. Running the same command again
resumes an interrupted run, and exits immediately after a finished one; another model, data or learning rate is refused.
With --dry_run it only prints what would train, the memory that this needs, the steps and the time, in seconds.
With --eval_suite, every checkpoint is evaluated, see vita_audio/training/checkpoint_evaluation.py.
"""

from collections.abc import Sequence

from vita_audio.errors import one_line_errors, one_line_run_errors
from vita_audio.training.arguments import parse_arguments, parse_flags


def main(argv: Sequence[str] | None = None) -> None:
    """Train a stage, or with --dry_run describe it.

    Wrong input exits with one line and code 2, a full disk or a diverging loss with code 1.
    """
    with one_line_run_errors("finetune_sts.py"):
        with one_line_errors("finetune_sts.py"), one_line_run_errors("finetune_sts.py"):
            flags = parse_flags(argv)
            if flags[2].dry_run:
                from vita_audio.training.dry_run import dry_run

                print(dry_run(flags))
                return
            arguments = parse_arguments(argv)
            from vita_audio.training import stage  # imports torch: not before the flags are parsed

            trainer, checkpoint = stage.prepare(arguments)
        if trainer is not None:
            trainer.train(resume_from_checkpoint=checkpoint)
            stage.finish(trainer)


if __name__ == "__main__":
    main()

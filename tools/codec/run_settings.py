"""What a resumed run of a codec training must share with the command that started it, beyond its sizes."""

import argparse

from evaluation.run_folder import keep_settings
from tools.common.training_loop import CHECKPOINT

KEPT = ("corpus", "voice", "start_from", "heads", "layers", "code_layers")  # what the shapes of weights do not show


def is_new(args: argparse.Namespace) -> bool:
    """Return whether a run has no checkpoint to resume from, so that its weights come from --start-from."""
    return not (args.output / CHECKPOINT).exists()


def keep_options(args: argparse.Namespace, **more: str) -> None:
    """Save the options in `KEPT`, and `more`, in the run folder, unless it has them.

    Raises: ValueError if the run was started with others.
    """
    keep_settings(args.output, {name: str(value) for name, value in vars(args).items() if name in KEPT} | more)

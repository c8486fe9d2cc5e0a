"""Report wrong input in one line instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import soundfile

from vita_audio.optional import MissingPackageError

WRONG_INPUT, RUN_ENDED = 2, 1  # exit codes; argparse uses 2


class RunError(RuntimeError):
    """A run cannot continue for a reason outside the program, such as a full disk; the message says what to do."""


@contextmanager
def one_line_run_errors(program: str) -> Iterator[None]:
    """Turn a RunError into one line on stderr. Raises: SystemExit with code `RUN_ENDED`."""
    try:
        yield
    except RunError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(RUN_ENDED) from error


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn errors about wrong values, wrong files and missing packages into one line on stderr.

    Raises: SystemExit with code `WRONG_INPUT` in place of ValueError, OSError, LibsndfileError, MissingPackageError.
    """
    try:
        yield
    except (ValueError, OSError, soundfile.LibsndfileError, MissingPackageError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT) from error

"""Report wrong input in one line instead of a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import soundfile

from vita_audio.optional import MissingPackageError

WRONG_INPUT, RUN_ENDED = 2, 1  # exit codes; argparse uses 2
DISK_ERRORS = ("ENOSPC", "EDQUOT")  # full, over the quota


class RunError(RuntimeError):
    """A run cannot continue for a reason outside the program, such as a full disk; the message says what to do."""


@contextmanager
def one_line_run_errors(program: str) -> Iterator[None]:
    """Turn a RunError, a full disk, and the loss of another process into one line on stderr.

    Raises: SystemExit with code `RUN_ENDED`.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if is_lost_process(error):
            message = "another process of this run has ended, see its message"
        elif isinstance(error, RunError):
            message = " ".join(str(error).split())
        elif isinstance(error, OSError) and errno.errorcode.get(error.errno) in DISK_ERRORS:
            message = f"{error}; make room, then run the same command to continue"
        else:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        raise SystemExit(RUN_ENDED) from error


def is_lost_process(error: Exception) -> bool:
    """Return whether an error says that another process of a distributed run has ended."""
    kinds = ("DistBackendError", "DistNetworkError", "DistStoreError")  # torch.distributed, which is slow to import
    return type(error).__name__ in kinds or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


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

"""Serve a VITA-Audio model with vLLM, after checks that would otherwise fail within the start of the engine.

python -m vita_audio_vllm MODEL [options of vllm serve]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vita_audio_vllm import check_engine
from vita_audio_vllm.checkpoint import check_folder


def main() -> None:
    """Check the engine and the checkpoint, and become `vllm serve`. Raises: SystemExit with one line on stderr."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(__doc__.strip())
    try:
        check_engine()
        if (folder := Path(arguments[0])).exists():  # otherwise it is a name on the hub
            check_folder(folder)
    except (ValueError, OSError) as error:
        print(f"vita_audio_vllm: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments])


if __name__ == "__main__":
    main()

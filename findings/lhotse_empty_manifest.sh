#!/usr/bin/env bash
# lhotse 1.33.0: reading a cut set that has no cuts.
#
# Expected: an empty CutSet, whichever function reads the file. A filter that leaves nothing writes such a file.
# Seen: CutSet.from_file and load_manifest_lazy return None, so the error comes later, where the cuts are used.
# CutSet.from_jsonl, CutSet.from_jsonl_lazy and load_manifest return an empty CutSet for the same file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" lhotse==1.33.0 torch==2.13.0 \
    2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from lhotse import CutSet, load_manifest, load_manifest_lazy

path = Path(sys.argv[1]) / "cuts.jsonl.gz"
CutSet.from_cuts([]).to_file(path)
seen = {}
for read in (CutSet.from_file, load_manifest_lazy, CutSet.from_jsonl, CutSet.from_jsonl_lazy, load_manifest):
    seen[read.__name__] = read(path)
    print(f"{read.__name__}: {seen[read.__name__]!r}")
empty = [name for name, value in seen.items() if value is None]
if empty != ["from_file", "load_manifest_lazy"]:
    raise SystemExit(f"changed: None from {empty}")
PYTHON

#!/usr/bin/env bash
# text2num 3.1.0 (text_to_num), alpha2digit for English: figures followed by a scale word.
#
# Expected: "10 million", the form that recognisers write most often, becomes 10000000 or stays as it is.
# Seen: the scale word alone is converted, so the amount falls apart into "10" and "1000000"; "hundreds" becomes 100;
# amounts above 999 trillion stop half-way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" text2num==3.1.0 2> "$folder/pip.log" \
    || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
from text_to_num import alpha2digit

SEEN = {
    "10 million": "10 1000000",
    "ten point five million": "10.5 1000000",
    "hundreds of people": "100 of people",
    "one thousand trillion": "1000 trillion",
}
wrong = []
for text, seen in SEEN.items():
    now = alpha2digit(text, "en")
    print(f"{text!r} -> {now!r}")
    if now != seen:
        wrong.append(f"{text!r} was {seen!r}, is now {now!r}")
if wrong:
    raise SystemExit("changed: " + "; ".join(wrong))
PYTHON

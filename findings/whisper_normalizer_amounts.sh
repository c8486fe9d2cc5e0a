#!/usr/bin/env bash
# whisper-normalizer 0.1.15 (the English normaliser of Whisper's paper, as a package): signs, units and grouping of numbers.
#
# Expected: text normalisation for word error rates keeps different amounts different, and reads "10 o'clock" as written.
# Seen: the "o" of "o'clock" becomes a zero that joins the number; a minus sign and leading zeros vanish; "mm" is
# dropped as a filler word even after a number; an amount below one dollar or euro becomes cents with a wrong value;
# fractions in words become half a number.
# Source: whisper_normalizer/english.py, EnglishNumberNormalizer and the list of ignored words.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" whisper-normalizer==0.1.15 2> "$folder/pip.log" \
    || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
from whisper_normalizer.english import EnglishTextNormalizer

normalise = EnglishTextNormalizer()
SEEN = {
    "10 o'clock": "100 clock",
    "-40": "40",
    "007": "7",
    "a 20 mm lens": "a 20 lens",
    "$0.5": "¢5",
    "€0.50": "¢50",
    "1,2,3": "12 3",
    "one third": "13rd",
    "one hundred and two hundred": "10200",
}
wrong = []
for text, seen in SEEN.items():
    now = normalise(text)
    print(f"{text!r} -> {now!r}")
    if now != seen:
        wrong.append(f"{text!r} was {seen!r}, is now {now!r}")
if wrong:
    raise SystemExit("changed: " + "; ".join(wrong))
PYTHON

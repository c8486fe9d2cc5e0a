#!/usr/bin/env bash
# wetext 0.1.8, Chinese text normalisation (figures to words) and its inverse.
#
# Expected: figures with grouping commas are one number, "10-20" is a range, the inverse turns words into figures.
# Seen: "12,000" is read as "12" and three zeros; "10-20" becomes a date and "3-5" a subtraction; the U+2212 minus sign
# stays a sign next to the word; the inverse leaves "零下五度" and "二〇二四" in words.
# Use: unify grouping commas, ranges and minus signs before calling it, and do not rely on the inverse for one reading
# per number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" wetext==0.1.8 2> "$folder/pip.log" \
    || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
from wetext import Normalizer

to_words = Normalizer(lang="zh", operator="tn").normalize
to_figures = Normalizer(lang="zh", operator="itn").normalize
SEEN = [
    (to_words, "12,000", "十二,零零零"),
    (to_words, "10-20", "十月二十日"),
    (to_words, "3-5", "三减五"),
    (to_words, "\u22125度", "\u2212五度"),
    (to_words, "0123", "零一百二十三"),
    (to_figures, "零下五度", "零下五度"),
    (to_figures, "二〇二四", "二〇二四"),
]
wrong = []
for function, text, seen in SEEN:
    now = function(text)
    print(f"{text!r} -> {now!r}")
    if now != seen:
        wrong.append(f"{text!r} was {seen!r}, is now {now!r}")
if wrong:
    raise SystemExit("changed: " + "; ".join(wrong))
PYTHON

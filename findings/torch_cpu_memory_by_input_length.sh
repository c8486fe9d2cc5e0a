#!/usr/bin/env bash
# torch 2.13.0 on an x86 CPU (its oneDNN): memory of a process that runs convolutions on inputs of ever new lengths.
#
# Expected: in inference mode nothing is kept between calls, so memory stays level after the first calls.
# Seen: oneDNN keeps the code and the buffers that it makes for each new input shape, up to 1,024 of them, so a server whose
# utterances all differ in length looks as if it leaked: here 82 MiB after 200 more lengths, still growing. torch has no
# function to limit or empty this cache; ONEDNN_PRIMITIVE_CACHE_CAPACITY=8, read at the first convolution, leaves 9 MiB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" torch==2.13.0 numpy 2> "$folder/pip.log" \
    || { cat "$folder/pip.log" >&2; exit 1; }
cat > "$folder/lengths.py" <<'PYTHON'
import resource

import torch


def memory():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize() / 2**20


torch.set_num_threads(1)
layers = torch.nn.Sequential(*(torch.nn.Conv1d(256, 256, 7, padding=3) for _ in range(8)))
with torch.inference_mode():
    for length in range(200, 220):
        layers(torch.zeros(1, 256, length))
    before = memory()
    for length in range(220, 420):
        layers(torch.zeros(1, 256, length))
print(round(memory() - before))
PYTHON
grown=$(PYTHONPATH=$folder python3 "$folder/lengths.py")
limited=$(PYTHONPATH=$folder ONEDNN_PRIMITIVE_CACHE_CAPACITY=8 python3 "$folder/lengths.py")
echo "memory after 200 more lengths: $grown MiB more; with ONEDNN_PRIMITIVE_CACHE_CAPACITY=8: $limited MiB more"
[ "$grown" -gt 40 ] && [ "$limited" -lt 20 ] || { echo "changed" >&2; exit 1; }

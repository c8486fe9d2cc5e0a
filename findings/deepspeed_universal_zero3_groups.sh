#!/usr/bin/env bash
# deepspeed 0.19.8: a universal checkpoint of ZeRO-3, loaded into an optimizer with two parameter groups.
#
# Expected: after loading, the groups have the weight decay and learning rate they were saved with, and one more step
# takes each state from step 3 to step 4.
# Seen: all groups have the settings of the first, so biases without weight decay now decay. All states share one step
# tensor, which each of them advances: one step goes from 3 to 5 with two groups, and bias correction is wrong from then
# on. The files of the checkpoint are right; only loading mixes them up.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" deepspeed==0.19.8 torch==2.13.0 \
    setuptools 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29611} RANK=0 LOCAL_RANK=0 \
    WORLD_SIZE=1 python3 -W ignore - "$folder/run" <<'PYTHON'
import sys
from argparse import Namespace
from pathlib import Path

import deepspeed
import torch
from deepspeed.checkpoint.ds_to_universal import main as convert

RUN = Path(sys.argv[1])
CONFIG = {"train_batch_size": 1, "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True}


def make_engine(**more):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    weights = {"params": [layer.weight for layer in model], "weight_decay": 0.1, "lr": 1e-2}
    biases = {"params": [layer.bias for layer in model], "weight_decay": 0.0, "lr": 1e-3}
    optimizer = torch.optim.AdamW([weights, biases])
    return deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG | more)[0]


def take_step(engine):
    engine.backward(engine(torch.ones(1, 8)).square().mean())
    engine.step()


def settings_and_steps(engine):
    optimizer = engine.optimizer.optimizer
    groups = [(group["weight_decay"], group["lr"]) for group in optimizer.param_groups]
    return groups, [int(state["step"]) for state in optimizer.state.values()]


first = make_engine()
for _ in range(3):
    take_step(first)
first.save_checkpoint(str(RUN), tag="three")
saved = settings_and_steps(first)
options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
paths = {"input_folder": str(RUN / "three"), "output_folder": str(RUN / "three_universal")}
convert(Namespace(**paths, inject_missing_state=True, **options))
(RUN / "latest_universal").write_text("three_universal")

second = make_engine(checkpoint={"load_universal": True})
second.load_checkpoint(str(RUN), tag="three_universal")
loaded = settings_and_steps(second)
take_step(second)
after = settings_and_steps(second)
print(f"(weight decay, learning rate) and step of each group: saved {saved}, loaded {loaded}, a step later {after}")
same = [(0.1, 0.01), (0.1, 0.01)]
if saved != ([(0.1, 0.01), (0.0, 0.001)], [3, 3]) or loaded != (same, [3, 3]) or after != (same, [5, 5]):
    raise SystemExit("changed")
PYTHON

#!/usr/bin/env bash
# transformers 5.23.0: Trainer.train(resume_from_checkpoint=...) with the checkpoint of the last step.
#
# Expected: a run of max_steps 4 that was stopped after it had saved checkpoint-4 is finished, so resuming it changes
# nothing.
# Seen: the Trainer takes a fifth step, with a constant learning rate at full strength, and ends with global_step 5. This
# happens to each run that is killed between its last checkpoint and the end, and again with each restart.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" transformers==5.23.0 torch==2.13.0 \
    accelerate==1.15.0 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - "$folder/run" <<'PYTHON'
import sys

import torch
from transformers import Trainer, TrainingArguments


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x, labels=None):
        return {"loss": (self.linear(x)[:, 0] - labels).square().mean()}


torch.manual_seed(0)
rows = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(32)]


def train(checkpoint):
    arguments = TrainingArguments(
        sys.argv[1],
        max_steps=4,
        save_steps=4,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(Line(), arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


finished = train(None)
resumed = train(f"{sys.argv[1]}/checkpoint-4")
change = (finished.model.linear.weight - resumed.model.linear.weight).abs().max().item()
steps = finished.state.global_step, resumed.state.global_step
print(f"steps: {steps[0]}, after resuming {steps[1]}; largest change of a weight {change:.3f}")
if steps != (4, 5) or change < 1e-3:
    raise SystemExit(f"changed: {steps}, {change}")
PYTHON

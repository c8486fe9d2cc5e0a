#!/usr/bin/env bash
# transformers 5.23.0: the loss that Trainer.compute_loss hands back with return_outputs=True, on several processes.
#
# Expected: the scaling by the number of processes, which undoes DDP's average, concerns the returned loss alone;
# outputs.loss stays what the model has computed.
# Seen: the loss is multiplied in place, and it is the same tensor as outputs.loss. Whoever logs or checks outputs.loss in
# a subclass sees twice the loss on two processes and eight times the loss on eight, as if training had diverged.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" transformers==5.23.0 torch==2.13.0 \
    accelerate==1.15.0 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
cat > "$folder/loss.py" <<'PYTHON'
import sys

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1))
ids = torch.arange(16)[None]
arguments = TrainingArguments(sys.argv[1], use_cpu=True, ddp_backend="gloo", report_to=[], disable_tqdm=True)
trainer = Trainer(model, arguments)
num_targets = torch.tensor(15)
with torch.no_grad():
    own = model(input_ids=ids, labels=ids, num_items_in_batch=num_targets).loss.item()
    inputs = {"input_ids": ids, "labels": ids}
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_targets)
ratio = outputs.loss.item() / own
if trainer.args.process_index == 0:
    print(f"processes: {trainer.args.world_size}, outputs.loss / the model's own loss: {ratio:.3f}")
if abs(ratio - trainer.args.world_size) > 1e-3 or loss is not outputs.loss:
    raise SystemExit(f"changed: {ratio}")
PYTHON
PYTHONPATH=$folder OMP_NUM_THREADS=1 python3 -m torch.distributed.run --standalone --nproc_per_node 2 \
    "$folder/loss.py" "$folder/run" 2> "$folder/log" || { tail -20 "$folder/log" >&2; exit 1; }

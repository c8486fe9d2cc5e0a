#!/usr/bin/env bash
# transformers 5.23.0: new rows of resize_token_embeddings, as used to add audio codes to a text model.
#
# Expected: the log says that new embeddings are drawn from a normal distribution with the mean and covariance of the old
# ones, so new rows should differ from each other about as much as old rows do.
# Seen: the covariance is multiplied by 1e-9 before the draw. With old rows of standard deviation 0.02, the new rows have
# 6e-7 around one point, in the embedding and in an untied head. All added codes look the same to the model at first, and
# the head gives all of them the same logit to within 1e-4. The log is the only notice, and it names neither factor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" transformers==5.23.0 torch==2.13.0 \
    2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=False,
)
model = Qwen2ForCausalLM(config).eval()
model.resize_token_embeddings(768)
ratios = {}
for name, weight in {"embedding": model.get_input_embeddings().weight, "head": model.lm_head.weight}.items():
    old, new = weight[:512].std(dim=0).mean().item(), weight[512:].std(dim=0).mean().item()
    ratios[name] = new / old
    print(f"{name}: standard deviation of old rows {old:.4f}, of new rows {new:.2e}")
with torch.no_grad():
    logits = model(torch.arange(8)[None]).logits[0, -1, 512:]
spread = (logits.max() - logits.min()).item()
print(f"logits of the 256 new tokens lie within {spread:.1e}")
if max(ratios.values()) > 1e-3 or spread > 1e-3:
    raise SystemExit(f"changed: {ratios}, {spread}")
PYTHON

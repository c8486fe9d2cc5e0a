#!/usr/bin/env bash
# peft 0.21.2: what an adapter with trainable_token_indices, not merged, costs in each forward pass.
#
# Expected: the embedding looks up its rows and replaces those of the trained tokens, so the work depends on the number
# of tokens in the input.
# Seen: every call copies the whole embedding table, puts the trained rows into the copy, and looks up the input there;
# with tied weights the head copies it again. One token through a model with a vocabulary of 150,000 and width 64 (38.4
# MB in float32) allocates 77 MB more with an adapter for 8 tokens than without one, at each decoding step. Merging the
# adapter avoids it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" peft==0.21.2 transformers==5.23.0 \
    torch==2.13.0 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY, WIDTH = 150_000, 64


def allocated(model):
    """Bytes that one forward pass over one token allocates."""
    with torch.no_grad():
        model(torch.tensor([[5]]), use_cache=False)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            model(torch.tensor([[5]]), use_cache=False)
    return sum(max(event.self_cpu_memory_usage, 0) for event in profiler.key_averages())


table = VOCABULARY * WIDTH * 4
for tied in (False, True):
    sizes = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=1)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=tied, **sizes, **heads)).eval()
    plain = allocated(model)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=list(range(8)))).eval()
    adapted = allocated(model)
    merged = allocated(model.merge_and_unload())
    print(f"tied: {tied}; table {table:,} bytes; allocated: {plain:,}; with adapter {adapted:,}; merged {merged:,}")
    copies = (adapted - plain) / table
    if not (0.9 < copies < 1.2 if not tied else 1.9 < copies < 2.3) or merged > 1.5 * plain:
        raise SystemExit(f"changed: {copies:.2f} copies of the table")
PYTHON

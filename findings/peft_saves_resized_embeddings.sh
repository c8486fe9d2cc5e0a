#!/usr/bin/env bash
# peft 0.21.2: the size of a saved adapter that trains the rows of new tokens (trainable_token_indices).
#
# Expected: the adapter holds its low-rank matrices and the rows of the new tokens, a few per cent of the model.
# Seen: if the base was loaded from a folder and its embeddings were resized for the new tokens, saving compares the two
# vocabulary sizes and adds the whole embedding table, and the whole head, to the adapter, which then holds the rows of
# the new tokens twice: here 2,110,264 bytes in place of 6,560. A warning names the reason. Without a
# base_model_name_or_path in the adapter's configuration, or with save_embedding_layers=False, only the rows are saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" peft==0.21.2 transformers==5.23.0 \
    torch==2.13.0 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

base, sizes = Path(sys.argv[1]) / "base", {}
shape = dict(vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=1, tie_word_embeddings=True)).save_pretrained(base)
for name in ("named", "unnamed"):
    model = Qwen2ForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(4104)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=list(range(4096, 4104))))
    if name == "unnamed":
        model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(base.parent / name)
    sizes[name] = (base.parent / name / "adapter_model.safetensors").stat().st_size
    print(f"base {name} in the configuration: {sizes[name]:,} bytes")
if not sizes["named"] > 50 * sizes["unnamed"]:
    raise SystemExit(f"changed: {sizes}")
PYTHON

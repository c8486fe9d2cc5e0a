#!/usr/bin/env bash
# peft 0.21.2: trainable_token_indices=[...] of LoraConfig for new tokens of a model with a head of its own.
#
# Expected: the new tokens are learned, on the way in and on the way out, as they are in a model whose head is tied to the
# embeddings.
# Seen: a list names rows of the embeddings only. A tied head follows them; in a model with a head of its own the new
# tokens' rows of the head stay at their first values, without a warning, so the model can read new tokens but learns to
# write them only through its hidden states. {"embed_tokens": [...], "lm_head": [...]} trains both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" peft==0.21.2 transformers==5.23.0 \
    torch==2.13.0 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

ROWS = [60, 61, 62, 63]


def learns_head(tied: bool, tokens: object) -> bool:
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, tie_word_embeddings=tied))
    before = model.lm_head.weight[ROWS].clone()
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=tokens))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids = torch.tensor([ROWS])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return not torch.equal(model.merge_and_unload().lm_head.weight[ROWS], before)


seen = {
    "tied, list": learns_head(True, ROWS),
    "untied, list": learns_head(False, ROWS),
    "untied, both named": learns_head(False, {"embed_tokens": ROWS, "lm_head": ROWS}),
}
for case, learned in seen.items():
    print(f"{case}: the rows of the head {'are learned' if learned else 'stay'}")
if list(seen.values()) != [True, False, True]:
    raise SystemExit(f"changed: {seen}")
PYTHON

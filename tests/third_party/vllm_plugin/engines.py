"""Engines of vLLM in this process, and the same answers from our own model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.distributed import cleanup_dist_env_and_memory

BATCH_SIZE = 20


def random_prompts(vocab_size: int, number: int = 200) -> list[list[int]]:
    """Return prompts of 1 to 40 tokens."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 41, (number,), generator=generator).tolist()
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


def vanilla_ids(model, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy answers of our own decoding without modules; no token ends them."""
    answers, options = [], {"mtp_inference_mode": "vanilla", "do_sample": False, "pad_token_id": 0}
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        length = max(map(len, batch))
        ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in batch])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in batch])
        answers += model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **options)[
            :, length:
        ].tolist()
    return answers


@contextmanager
def run_engine(folder, **options):
    """Run a checkpoint in float32, without a text tokenizer."""
    fixed = {"dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 256}
    llm = LLM(str(folder), max_num_seqs=16, disable_log_stats=False, **fixed, **options)
    yield llm
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


def engine_ids(llm: LLM, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy answers of the engine, which batches the prompts as it likes."""
    sampling = SamplingParams(temperature=0, max_tokens=max_new_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]

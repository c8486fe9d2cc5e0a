"""Engines of vLLM in this process, and the same answers from our own model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.inputs import EmbedsPrompt

BATCH_SIZE = 20


def random_prompts(vocab_size: int, number: int = 200, longest: int = 40) -> list[list[int]]:
    """Return prompts of 1 to `longest` tokens."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, longest + 1, (number,), generator=generator).tolist()
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
    sizes = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 16}
    plain = {"enforce_eager": True, "skip_tokenizer_init": True, "disable_log_stats": False}
    llm = LLM(str(folder), **sizes | plain | options)
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def engine_ids(llm: LLM, prompts: Sequence[Sequence[int] | Tensor], max_new_tokens: int) -> list[list[int]]:
    """Return the greedy answers of the engine to ids or embeddings, which it batches as it likes."""
    sampling = SamplingParams(temperature=0, max_tokens=max_new_tokens, ignore_eos=True, detokenize=False)
    inputs = [
        EmbedsPrompt(prompt_embeds=prompt) if isinstance(prompt, Tensor) else TokensPrompt(prompt_token_ids=prompt)
        for prompt in prompts
    ]
    return [list(output.outputs[0].token_ids) for output in llm.generate(inputs, sampling, use_tqdm=False)]


def count(llm: LLM, name: str) -> int | list[int]:
    """Return one of the engine's counts of drafts; that of accepted ones by depth is a list."""
    metric = next(metric for metric in llm.get_metrics() if metric.name == f"vllm:spec_decode_num_{name}")
    return metric.values if hasattr(metric, "values") else int(metric.value)


def accepted_by_pass(model, prompt: Sequence[int], answer: Sequence[int], num_new: int, num_drafts: int) -> list[int]:
    """Return how many drafts of our modules each pass of the backbone accepts while `num_new` tokens are decoded.

    The modules read the answer here, which is what drafts are up to the first one that is rejected.

    Args:
        answer: At least `num_new + num_drafts` tokens: the last pass may go beyond the end.
    """
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    with torch.inference_mode():
        hidden = model.model(input_ids=ids).last_hidden_state
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        chain = list(model.mtp_chain(model.model.embed_tokens(ids), hidden, positions))[:num_drafts]
        agrees = [  # agrees[depth - 1][place]: whether the draft made at a place for `depth + 1` places later is right
            (model.lm_head(states).argmax(-1)[0, : -depth - 1] == ids[0, depth + 1 :]).tolist()
            for depth, states in enumerate(chain, start=1)
        ]
    accepted, last = [], len(prompt)  # the first token comes without drafts
    while last < len(prompt) + num_new - 1:
        accepted.append(next((depth for depth in range(num_drafts) if not agrees[depth][last - 1]), num_drafts))
        last += accepted[-1] + 1
    return accepted


def gap_where_they_part(model, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> float:
    """Return how far apart the logits of two different answers' tokens are where the answers part."""
    place = next(place for place, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ours[:place]]])).logits[0, -1]
    return abs(float(logits[ours[place]] - logits[theirs[place]]))

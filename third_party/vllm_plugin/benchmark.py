"""Tokens per second of vLLM, of our own decoding in batches and of plain transformers, with 1, 4 and 16 streams.

    .venv_vllm/bin/python third_party/vllm_plugin/benchmark.py --model DIR --output benchmark.json

All in one run and one environment. The contenders take turns, each in a process of its own. Time is CPU time of one
thread; the median over all repeats counts. Prompts ask to read ten digits aloud, and answers have a fixed length.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's time counts too
    "VLLM_LOGGING_LEVEL": "ERROR",
}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ONE_DRAFT = {"method": "mtp", "num_speculative_tokens": 1}
Run = Callable[[list[list[int]], int], int]  # prompts, new tokens of each -> new tokens in all


def make_vllm(folder: str, **options: Any) -> Run:
    from vllm import LLM, SamplingParams, TokensPrompt

    fixed = {"dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True, "enable_prefix_caching": False}
    llm = LLM(folder, max_model_len=1024, max_num_seqs=16, **fixed, **options)

    def run(prompts: list[list[int]], length: int) -> int:
        sampling = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
        outputs = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def make_ours(folder: str, plan: str, **options: Any) -> Run:
    import torch

    from vita_audio.models import Qwen2MTPForCausalLM

    model = Qwen2MTPForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return _generate(model, mtp_inference_mode=plan, **options)


def make_transformers(folder: str) -> Run:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from vita_audio.models import Qwen2MTPForCausalLM

    source = Qwen2MTPForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = source.config.num_backbone_layers
    fields = source.config.to_dict() | {"num_hidden_layers": layers, "model_type": "qwen2"}
    fields["layer_types"] = fields["layer_types"][:layers]
    model = Qwen2ForCausalLM(Qwen2Config.from_dict(fields))
    weights = source.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return _generate(model)


def _generate(model: Any, **options: Any) -> Run:
    import torch

    def run(prompts: list[list[int]], length: int) -> int:
        lengths = {"min_new_tokens": length, "max_new_tokens": length}
        ids = torch.tensor(prompts)
        fixed = {"attention_mask": torch.ones_like(ids), "do_sample": False, "repetition_penalty": 1.0}
        rows = model.generate(ids, **fixed, **lengths, **options)
        return rows.shape[0] * (rows.shape[1] - len(prompts[0]))

    return run


CONTENDERS: dict[str, Callable[[str], Run]] = {
    "transformers": make_transformers,
    "ours, vanilla": lambda folder: make_ours(folder, "vanilla"),
    "ours, boost, acceptance 1": lambda folder: make_ours(folder, "boost", acceptance=1.0),
    "ours, boost, acceptance 0": lambda folder: make_ours(folder, "boost", acceptance=0.0),
    "vLLM": make_vllm,
    "vLLM, 1 verified draft": lambda folder: make_vllm(folder, speculative_config=ONE_DRAFT),
}


def make_prompts(folder: Path, number: int) -> list[list[int]]:
    """Return different prompts of the same length."""
    from vita_audio.data.chat import encode_prompt
    from vita_audio.inference.tasks import make_conversation
    from vita_audio.interleave import MODES, InterleavePlan
    from vita_audio.text import TextTokenizer

    tokenizer, plan, chance = TextTokenizer.from_pretrained(folder), InterleavePlan(MODES["boost"]), random.Random(0)

    def prompt() -> list[int]:
        conversation = make_conversation("tts", text=" ".join(chance.choices(WORDS, k=10)))
        return encode_prompt(conversation, tokenizer, lambda audio, role: [], plan)[0]

    first = prompt()
    return [first, *islice((ids for ids in iter(prompt, None) if len(ids) == len(first)), number - 1)]


def measure(contender: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the tokens per second of CPU time of one contender in each repeat, by the number of streams."""
    import torch

    torch.set_num_threads(1)
    run = CONTENDERS[contender](str(options.model))
    prompts, rates = make_prompts(options.model, max(options.streams)), defaultdict(list)
    for streams in options.streams:
        run(prompts[:streams], 8)  # warm-up
        for _ in range(options.repeats):
            start = time.process_time()
            num_tokens = run(prompts[:streams], options.new_tokens)
            rates[str(streams)].append(num_tokens / (time.process_time() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=Path("outputs/quickstart/stage4"), help="folder of a model")
    add("--output", type=Path, required=True, help="JSON file")
    add("--streams", type=int, nargs="+", default=[1, 4, 16])
    add("--new-tokens", type=int, default=64, help="length of an answer")
    add("--rounds", type=int, default=2, help="turns of each contender")
    add("--repeats", type=int, default=3, help="measurements in each turn")
    add("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        options.output.write_text(json.dumps(measure(options.contender, options)))
        return
    rates = {contender: defaultdict(list) for contender in CONTENDERS}
    loads, part = [], options.output.with_suffix(".part")
    for contender in [*CONTENDERS] * options.rounds:
        command = [sys.executable, __file__, *sys.argv[1:], "--contender", contender, "--output", str(part)]
        subprocess.run(command, env=os.environ | ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
        for streams, found in json.loads(part.read_text()).items():
            rates[contender][streams] += found
        loads.append(os.getloadavg()[0])
        print(f"load {loads[-1]:.1f}", contender, dict(rates[contender]), flush=True)
    part.unlink()
    settings = {name: getattr(options, name) for name in ("streams", "new_tokens", "rounds", "repeats")}
    medians = {
        contender: {streams: round(median(found), 1) for streams, found in row.items()}
        for contender, row in rates.items()
    }
    results = {"settings": settings, "median_load": round(median(loads), 1), "tokens_per_second": medians}
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

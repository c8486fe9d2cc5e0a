"""A few training steps with DeepSpeed, in as many processes as torchrun starts: zero_worker.py OUTPUT STAGE KIND.

KIND is all, frozen, aligned or coordinated: what trains, and whether another loss is added.
"""

import json
import sys
from pathlib import Path

import deepspeed
import torch
from safetensors.torch import save_file

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models import Qwen2MTPConfig, Qwen2MTPForCausalLM
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable

NUM_STEPS = 3
FIRST_TARGETS = ((0, 5, 11), (12, 12, 3))  # of each row in each step; a document of 12 tokens has none from its 12th on
CODES = range(64, 128)


def make_model(kind: str) -> Qwen2MTPForCausalLM:
    torch.manual_seed(0)
    config = Qwen2MTPConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=4,
        num_nextn_predict_layers=2,
        vocab_size=128,
        mtp_kl_weight=0.5,
        alignment_weight=0.5 if kind == "aligned" else 0.0,
        mtp_coordinator_weight=0.5 if kind == "coordinated" else 0.0,
    )
    model = Qwen2MTPForCausalLM(config).train()
    set_trainable(model, mtp_parameter_patterns(config) if kind == "frozen" else ["*"])
    return model


def count_releases(parameter: torch.nn.Parameter) -> list[int]:
    """Return a list that grows by one entry whenever ZeRO-3 frees the parameter, which it had gathered."""
    calls, partition = [], parameter.partition

    def counted(*args, **kwargs):
        calls.append(1)
        return partition(*args, **kwargs)

    parameter.partition = counted
    return calls


def main(output: Path, stage: int, kind: str) -> None:
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = make_model(kind)
    config = {
        "train_micro_batch_size_per_gpu": 2 // world_size,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
        },
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    gathers = count_releases(model.lm_head.weight) if stage == 3 else []
    ids = torch.randint(0, 128, (NUM_STEPS, 2, 12), generator=torch.Generator().manual_seed(1))
    losses, num_gathers = [], []
    for step in range(NUM_STEPS):
        labels = ids[step].clone()
        for row in range(2):
            labels[row, : FIRST_TARGETS[row][step]] = IGNORE_INDEX
        num_items = (labels[:, 1:] != IGNORE_INDEX).sum()
        rows = slice(rank, rank + 1) if world_size == 2 else slice(None)
        gathers.clear()
        inputs = {"input_ids": ids[step][rows], "labels": labels[rows], "num_items_in_batch": num_items}
        if kind == "aligned":  # two documents in a row; in one step the second process has no codes
            inputs |= {"position_ids": torch.arange(12)[None] % 6, "code_ids": CODES}
            if step == rank == 1:
                inputs["input_ids"] = inputs["input_ids"] % CODES.start
        loss = engine(**inputs, use_cache=False).loss
        engine.backward(loss * world_size)  # DeepSpeed averages over the processes
        num_gathers.append(len(gathers))
        engine.step()
        loss = loss.detach().clone()
        torch.distributed.all_reduce(loss)
        losses.append(loss.item())
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    (output / f"rank{rank}.json").write_text(json.dumps({"losses": losses, "head_gathers": num_gathers}))
    if rank == 0:
        save_file(weights, output / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

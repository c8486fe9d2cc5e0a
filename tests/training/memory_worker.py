"""Measure the peak memory of training steps, and estimate it: memory_worker.py STEP CHECKPOINTING.

Prints both in MiB. Each step accumulates two batches, as training does, and AdamW has its state from the second on.
"""

import sys
import warnings

import torch

from tools.common.training_step import FROZEN, MIB, TRAINABLE, PeakMemory, Settings, make_batch, make_model
from vita_audio.models import Qwen2MTPConfig
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable
from vita_audio.training.memory import FLOAT32, activation_bytes, empty_model, loss_bytes, step_memory

warnings.simplefilter("ignore", FutureWarning)  # gradient_checkpointing_enable has a new name
CONFIG = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "num_nextn_predict_layers": 2,
    "vocab_size": 12000,
}
TOKENS = 1024


def train(settings: Settings, checkpointing: bool, num_steps: int) -> None:
    model = make_model(settings)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = make_batch(settings, model.config.vocab_size)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], foreach=False)
    for _ in range(num_steps):
        for _ in range(2):
            model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def estimate(settings: Settings, checkpointing: bool) -> float:
    model = empty_model(Qwen2MTPConfig(**CONFIG), torch.float32)
    set_trainable(model, mtp_parameter_patterns(model.config) if settings.step == FROZEN else ["*"])
    activations, layer = activation_bytes(model, 1, TOKENS, checkpointing=checkpointing)
    working = max(loss_bytes(model, 1, TOKENS, FLOAT32), layer)
    return step_memory(model, activations, working, zero=None, bf16=False, num_gpus=1).total / MIB


def main(step: str, checkpointing: bool) -> None:
    torch.set_num_threads(1)
    settings = Settings(CONFIG, step=step, tokens=TOKENS, masked=0.0)
    train(Settings(CONFIG, step=step, tokens=8, masked=0.0), checkpointing, 1)  # the first use allocates more
    memory = PeakMemory("cpu")
    train(settings, checkpointing, 2)
    print(memory.read(), estimate(settings, checkpointing))


if __name__ == "__main__":
    main(TRAINABLE if sys.argv[1] == "all" else FROZEN, sys.argv[2] == "checkpointing")

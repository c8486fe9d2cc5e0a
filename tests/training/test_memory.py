"""The estimated memory of a training step: against measured peaks, and how ZeRO divides it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vita_audio.models import Qwen2MTPConfig
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable
from vita_audio.training.memory import activation_bytes, empty_model, step_memory

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("memory_worker.py")
RUN_WORKER = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"num_hidden_layers": 4, "num_nextn_predict_layers": 2, "vocab_size": 100}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        ("all", "none"),
        pytest.param(("frozen", "checkpointing"), marks=pytest.mark.slow),
        pytest.param(("all", "checkpointing"), marks=pytest.mark.slow),
        pytest.param(("frozen", "none"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_the_estimate_is_the_measured_peak(arguments):
    """In a process of its own, whose allocator returns what is freed at once."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", RUN_WORKER, str(WORKER), *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    measured, estimated = map(float, result.stdout.split())
    assert measured > 100
    assert estimated == pytest.approx(measured, rel=0.1)


@pytest.fixture
def model():
    return empty_model(Qwen2MTPConfig(**SIZES), torch.bfloat16)


def test_an_empty_model_holds_nothing(model):
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("zero, divided", [(0, ""), (1, "o"), (2, "og"), (3, "ogw")])
def test_zero_divides_more_with_every_stage(model, zero, divided):
    count = sum(parameter.numel() for parameter in model.parameters())
    memory = step_memory(model, 0, 0, zero=zero, bf16=True, num_gpus=8)
    gathered = model.lm_head.weight.numel() + sum(each.numel() for each in model.model.layers[0].parameters())
    assert memory.optimizer == 12 * count / (8 if "o" in divided else 1)  # float32 weights and two moments
    assert memory.gradients == 2 * count / (8 if "g" in divided else 1)
    assert memory.weights == (2 * count / 8 + 2 * gathered if "w" in divided else 2 * count)
    assert bool(memory.buffers) == (zero > 0)


def test_frozen_parameters_need_their_weights_only(model):
    set_trainable(model, mtp_parameter_patterns(model.config))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    memory = step_memory(model, 0, 0, zero=None, bf16=False, num_gpus=1)
    assert (memory.gradients, memory.optimizer) == (4 * trained, 8 * trained)
    assert memory.weights == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_activations_grow_with_tokens_and_fall_with_checkpointing(model):
    one, _ = activation_bytes(model, 1, 64, checkpointing=False)
    two, _ = activation_bytes(model, 2, 64, checkpointing=False)
    assert two == pytest.approx(2 * one, rel=0.05)  # rotary embeddings are shared
    kept, again = activation_bytes(model, 1, 64, checkpointing=True)
    assert kept < one / 2 and 0 < again < one / 4
    set_trainable(model, mtp_parameter_patterns(model.config))
    assert activation_bytes(model, 1, 64, checkpointing=False)[0] < 0.7 * one

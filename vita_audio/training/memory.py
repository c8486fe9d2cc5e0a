"""Memory that a training step needs, counted on a model without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from vita_audio.models.head_loss import chunk_rows

ATTENTION = "memory_estimate"  # name in transformers' table of attention functions
FLOAT32, BFLOAT16 = 4, 2  # bytes
REDUCE_BUCKET = 500_000_000  # DeepSpeed's default, in elements


class _FlashAttention(torch.autograd.Function):
    """Keeps what flash attention keeps for the backward pass, and computes nothing."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)  # (batch, heads, time, head)
        ctx.save_for_backward(query, key, value, output)
        return output


def _attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs) -> tuple[Tensor, None]:
    return _FlashAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model on the meta device: parameters with shapes, without values."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    return model.train()


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one GPU.

    Attributes:
        buffers: Buffers in which DeepSpeed reduces gradients.
        activations: Kept for the backward pass, by flash attention or another kernel that keeps no scores.
        working: For the loss (hidden states, logits of one chunk and their gradients) or, if that needs more, for the
            layer that gradient checkpointing computes again.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


class _SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of all tensors that autograd keeps, each storage once, without parameters."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(self.keep, lambda tensor: tensor)
        self._parameters = {each.untyped_storage()._cdata for each in model.parameters()}
        self._kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._parameters:
            self._kept[storage._cdata] = storage
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())


def activation_bytes(model: PreTrainedModel, batch_size: int, length: int, *, checkpointing: bool) -> tuple[int, int]:
    """Return the bytes that all depths keep for the backward pass, and those of a layer that is computed again.

    Args:
        model: From `empty_model`; only what trains keeps activations.
    """
    config = model.config
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.zeros(batch_size, length, dtype=torch.long, device="meta")
    positions = torch.arange(length, device="meta")[None]
    masks = dict.fromkeys(config.layer_types)
    kept, layer = _SavedTensors(model), _SavedTensors(model)
    with kept:
        with torch.set_grad_enabled(model.trains_backbone):
            embeds = model.model.embed_tokens(ids)
            layers = range(config.num_backbone_layers)
            hidden = model.model.norm(model.model.run_layers(embeds, layers, positions, masks))
        for states in (hidden, *model.mtp_chain(embeds, hidden, positions, masks=masks)):
            kept.keep(states)
    if checkpointing:
        model.gradient_checkpointing_disable()
        states = torch.empty_like(embeds).requires_grad_()
        with layer:
            last = config.num_hidden_layers - 1
            model.model.run_layers(states, range(last, last + 1), positions, masks)
    return kept.num_bytes, layer.num_bytes


def loss_bytes(model: PreTrainedModel, batch_size: int, length: int, element: int) -> int:
    """Return the bytes of the fused loss if every place has a target; see `HeadLoss`.

    Args:
        element: Bytes of an activation.
    """
    weight, config = model.lm_head.weight, model.config
    num_rows = (1 + config.num_nextn_predict_layers) * batch_size * length
    states = 3 * num_rows * config.hidden_size * element  # of all depths, of the rows with a target, their gradients
    copy = element if element != FLOAT32 else 0  # the gradient of the logits in the type of the activations
    logit = 2 * FLOAT32 + copy + (4 * FLOAT32 if config.mtp_kl_weight else 0)
    logits = min(num_rows, chunk_rows(weight)) * weight.shape[0] * logit
    head = weight.numel() * weight.element_size() if weight.requires_grad else 0  # its gradient, before it is added
    return states + logits + head


def step_memory(
    model: PreTrainedModel,
    activations: float,
    working: float,
    *,
    zero: int | None,
    bf16: bool,
    num_gpus: int,
    deepspeed: Mapping[str, Any] | None = None,
) -> StepMemory:
    """Return the memory of a step with AdamW, accumulated gradients included.

    Args:
        activations, working: See `StepMemory`.
        zero: ZeRO stage; None for training without DeepSpeed, whose weights are float32.
        bf16: Train in bfloat16; DeepSpeed then keeps bfloat16 weights and a float32 copy with the optimiser's state.
        deepspeed: The `zero_optimization` part of a DeepSpeed configuration.
    """
    numbers = [parameter.numel() for parameter in model.parameters()]
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    mixed = bf16 and zero is not None
    element = BFLOAT16 if mixed else FLOAT32
    weights, gradients = sum(numbers) * element, num_trained * element
    optimizer = num_trained * (3 if mixed else 2) * FLOAT32
    buffers = 0
    if zero is None and bf16:
        weights += sum(numbers) * BFLOAT16  # the copies that autocast makes
    if zero:
        options = deepspeed or {}
        bucket = options.get("reduce_bucket_size", REDUCE_BUCKET)
        bucket = bucket if isinstance(bucket, int | float) else model.config.hidden_size**2  # "auto" in transformers
        buffers = min(bucket, num_trained) * element * (2 if options.get("overlap_comm") else 1)
        optimizer /= num_gpus
        gradients /= num_gpus if zero >= 2 else 1
    if zero == 3:  # the rest is gathered module by module: at most the head and one layer at a time
        layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
        weights = weights / num_gpus + (model.lm_head.weight.numel() + layer) * element
    return StepMemory(weights, gradients, optimizer, buffers, activations, working)

"""Decoder layers without the cost of calling modules: the same operations on the same weights.

On a CPU the numbers are equal bit for bit, except that attention with a mask shares heads where transformers repeats
them. A GPU computes the norms in one kernel, which sums in another order.

For one token of a small model, calling the modules of a transformers layer takes longer than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm

from vita_audio.models.slots import Slots

LAYER_TYPES = (Qwen2DecoderLayer, Qwen3DecoderLayer, LlamaDecoderLayer)
NORM_TYPES = (Qwen2RMSNorm, Qwen3RMSNorm, LlamaRMSNorm)
PLAIN_TYPES = (nn.Linear, SiLUActivation, *NORM_TYPES)
HEAD_NORMS = ("q_norm", "k_norm")  # of Qwen3
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_plain(module: nn.Module) -> bool:
    """Tell whether calling a module runs its class's forward and nothing else, on weights in memory."""
    is_hooked = any(getattr(module, hooks) for hooks in HOOKS) or "forward" in vars(module)
    return not is_hooked and not any(parameter.is_meta for parameter in module.parameters(recurse=False))


def _output_linears(layer: nn.Module) -> tuple[nn.Module, ...]:
    mlp = layer.mlp
    return layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _affine(inputs: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
    return torch.mm(inputs, weight) if bias is None else torch.addmm(bias, inputs, weight)


def _rms_norm(norm: tuple[Tensor, float], hidden_states: Tensor) -> Tensor:
    weight, eps = norm
    if hidden_states.dtype == torch.float32:
        return F.rms_norm(hidden_states, weight.shape, weight, eps)
    # the weight comes after the rounding to bfloat16, as in transformers
    return weight * F.rms_norm(hidden_states.float(), weight.shape, eps=eps).to(hidden_states.dtype)


def _rotate(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Apply rotary positions to (rows, time, heads, size); `signed_sin` is negative in its first half."""
    return (states * cos).add_(states.roll(states.shape[-1] // 2, dims=-1).mul_(signed_sin))


class LeanLayers:
    """All layers, norms and projections of a model, their weights looked up once for a call of `generate`."""

    @classmethod
    def of(cls, model: Any) -> LeanLayers | None:
        """Return None for a model whose modules do more than those of Qwen2, Qwen3 and Llama.

        That is: quantised, adapted, hooked or offloaded ones, biases after attention or in the MLP, attention other
        than sdpa, and autocast.
        """
        layers, norms = model.model.layers, [*model.mtp_embed_norms, *model.mtp_hidden_norms, model.model.norm]
        inner = [part for layer in layers for part in layer.modules() if not next(part.children(), None)]
        outer = [part for layer in layers for part in layer.modules() if next(part.children(), None)]
        is_ours = (
            all(type(layer) in LAYER_TYPES for layer in layers)
            and all(type(part) in PLAIN_TYPES for part in (*inner, *norms, *model.mtp_projs))
            and all(linear.bias is None for layer in layers for linear in _output_linears(layer))
            and all(_is_plain(part) for part in (*inner, *outer, *norms, *model.mtp_projs))
            and model.config._attn_implementation == "sdpa"
            and not torch_module._has_any_global_hook()
            and not torch.is_autocast_enabled(model.device.type)
        )
        return cls(model) if is_ours else None

    def __init__(self, model: Any):
        self._num_backbone_layers = model.config.num_backbone_layers
        self._head_dim = model.model.layers[0].self_attn.head_dim
        self._layers = [self._weights(layer) for layer in model.model.layers]
        self._kinds = model.config.layer_types
        self._norm = self._norm_weights(model.model.norm)
        norms = zip(model.mtp_embed_norms, model.mtp_hidden_norms, strict=True)
        self._module_norms = [tuple(map(self._norm_weights, pair)) for pair in norms]
        self._projections = [projection.weight.t() for projection in model.mtp_projs]

    @staticmethod
    def _norm_weights(norm: nn.Module) -> tuple[Tensor, float]:
        return norm.weight, norm.variance_epsilon

    def _weights(self, layer: nn.Module) -> tuple:
        attention = layer.self_attn
        inputs = [(linear.bias, linear.weight.t()) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        norms = [self._norm_weights(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        head_norms = [self._norm_weights(getattr(attention, name)) for name in HEAD_NORMS if hasattr(attention, name)]
        return *norms, head_norms, *inputs, *(linear.weight.t() for linear in _output_linears(layer))

    def read_depth(
        self,
        depth: int,
        inputs_embeds: Tensor,
        earlier: Tensor | None,
        position_ids: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        masks: dict[str, Tensor | None],
        slots: Slots,
    ) -> Tensor:
        """Do what `MTPForCausalLM.read_depth` does."""
        cos, sin = (table[:, :, None] for table in position_embeddings)
        half = sin.shape[-1] // 2
        signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        layers = range(self._num_backbone_layers)
        hidden_states = inputs_embeds.flatten(0, 1)
        if depth:
            layers = range(layers.stop + depth - 1, layers.stop + depth)
            pairs = zip(self._module_norms[depth - 1], (hidden_states, earlier.flatten(0, 1)), strict=True)
            normed = torch.cat([_rms_norm(norm, states) for norm, states in pairs], dim=-1)
            hidden_states = normed.mm(self._projections[depth - 1])
        for number in layers:
            hidden_states = self._layer(number, hidden_states, cos, signed_sin, masks[self._kinds[number]], slots)
        return _rms_norm(self._norm, hidden_states).view_as(inputs_embeds)

    def _layer(
        self, number: int, hidden_states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, slots: Slots
    ) -> Tensor:
        """Run a layer on (rows * time, hidden); a product of two matrices costs fewer calls than one of batches."""
        norm, mlp_norm, head_norms, *inputs, o_weight, gate_weight, up_weight, down_weight = self._layers[number]
        rows, time = cos.shape[:2]
        normed = _rms_norm(norm, hidden_states)
        query, key, value = (_affine(normed, *each).view(rows, time, -1, self._head_dim) for each in inputs)
        if head_norms:
            query, key = (_rms_norm(*each) for each in zip(head_norms, (query, key), strict=True))
        num_heads = query.shape[2]
        query, key = _rotate(torch.cat([query, key], dim=2), cos, sin).tensor_split([num_heads], dim=2)
        keys, values = slots.write(number, key, value)
        query, keys, values = (states.transpose(1, 2) for states in (query, keys, values))
        if mask is not None and not mask.is_cpu:  # the fast kernels of a GPU take a mask or shared heads, not both
            keys, values = (states.repeat_interleave(query.shape[1] // keys.shape[1], 1) for states in (keys, values))
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None and time > 1, enable_gqa=True
        )
        hidden_states = attended.transpose(1, 2).reshape(rows * time, -1).mm(o_weight).add_(hidden_states)
        normed = _rms_norm(mlp_norm, hidden_states)
        gate = F.silu(normed.mm(gate_weight), inplace=True).mul_(normed.mm(up_weight))
        return gate.mm(down_weight).add_(hidden_states)

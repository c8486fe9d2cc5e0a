"""Weight-only quantisation of a loaded language model, for inference.

On a CPU, torchao keeps int8 weights but, without torch.compile, restores them to floats in every call, which is slower
than float32. The layer here holds the same numbers and calls the int8 kernel of torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vita_audio.optional import MissingPackageError, require

QUANTIZED_PARTS = ("model.layers.", "mtp_projs.", "lm_head")
CPU_BLOCK = 32  # the kernel reads beyond the end of rows that are no multiple of its block, without an error
TORCHAO_CONFIGS = {"int8": "Int8WeightOnlyConfig", "int4": "Int4WeightOnlyConfig"}


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per output, for a CPU; multiplies in bfloat16."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.dtype = linear.weight.dtype
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)  # a row of zeros has no scale of its own
        self.register_buffer("values", (weight / scale[:, None]).round().to(torch.int8))  # (outputs, inputs)
        self.register_buffer("scale", scale.bfloat16())
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weights in their former dtype, (outputs, inputs)."""
        return (self.values * self.scale.float()[:, None]).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        product = torch._weight_int8pack_mm(rows, self.values, self.scale)
        product = product.to(x.dtype).reshape(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def quantize_weights(model: nn.Module, kind: str) -> None:
    """Replace the linear layers of the backbone, the MTP modules and the head by quantised ones; embeddings stay.

    On a CPU, layers whose number of inputs is no multiple of 32 stay as well.

    Args:
        model: A loaded model on one device, changed in place.
        kind: "int8", on a CPU or a GPU, or "int4", on a GPU. A GPU needs the package torchao.
    Raises: ValueError for another kind or device; MissingPackageError.
    """
    if kind not in TORCHAO_CONFIGS:
        raise ValueError(f"quantize must be one of {', '.join(TORCHAO_CONFIGS)}, got {kind!r}")
    devices = {parameter.device for parameter in model.parameters()}
    kinds = {device.type for device in devices}
    if len(devices) > 1 or not kinds <= {"cpu", "cuda"}:
        raise ValueError(f"a model to quantize must be on one CPU or GPU, got {', '.join(map(str, devices))}")
    if kinds == {"cuda"}:
        _quantize_with_torchao(model, kind)
    elif kind == "int8":
        for name, layer in list(_linear_layers(model)):
            if layer.in_features % CPU_BLOCK == 0:
                model.set_submodule(name, Int8Linear(layer))
    else:
        raise ValueError(f"{kind} weights need a GPU, the model is on the CPU; use int8")


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(QUANTIZED_PARTS):
            yield name, module


def _quantize_with_torchao(model: nn.Module, kind: str) -> None:
    purpose = f"quantizing to {kind} on a GPU"
    torchao = require("torchao.quantization", purpose=purpose, install="'vita-audio[quantization]'")
    chosen = {name for name, _ in _linear_layers(model)}
    try:
        config = getattr(torchao, TORCHAO_CONFIGS[kind])()
        torchao.quantize_(model, config, filter_fn=lambda module, name: name in chosen)
    except ImportError as error:  # int4 kernels are in a package of their own
        raise MissingPackageError(f"{purpose} needs another package: {error}") from error

"""Llama with MTP modules."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from vita_audio.models.mtp_config import MTPConfig
from vita_audio.models.mtp_model import MTPBackbone, MTPForCausalLM


class LlamaMTPConfig(MTPConfig, LlamaConfig):
    """LlamaConfig with `MTPConfig` and the attention type of each layer, which Llama leaves unsaid.

    Args:
        layer_types: Attention of every layer; None means full attention.
    """

    model_type = "llama_mtp"

    layer_types: list[str] | None = None

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        super().__post_init__(**kwargs)


class LlamaMTPModel(MTPBackbone, LlamaModel):
    """LlamaModel with `MTPBackbone`."""

    config_class = LlamaMTPConfig


class LlamaMTPForCausalLM(MTPForCausalLM, LlamaForCausalLM):
    """LlamaForCausalLM with `MTPForCausalLM`."""

    config_class = LlamaMTPConfig
    backbone_class = LlamaMTPModel

"""Qwen3 with MTP modules: norms of queries and keys, heads of a size of their own, no biases."""

from __future__ import annotations

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from vita_audio.models.mtp_config import MTPConfig
from vita_audio.models.mtp_model import MTPBackbone, MTPForCausalLM


class Qwen3MTPConfig(MTPConfig, Qwen3Config):
    """Qwen3Config with `MTPConfig`."""

    model_type = "qwen3_mtp"


class Qwen3MTPModel(MTPBackbone, Qwen3Model):
    """Qwen3Model with `MTPBackbone`."""

    config_class = Qwen3MTPConfig


class Qwen3MTPForCausalLM(MTPForCausalLM, Qwen3ForCausalLM):
    """Qwen3ForCausalLM with `MTPForCausalLM`."""

    config_class = Qwen3MTPConfig
    backbone_class = Qwen3MTPModel

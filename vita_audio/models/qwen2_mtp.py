"""Qwen2 with MTP modules: the released models."""

from __future__ import annotations

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from vita_audio.models.mtp_config import MTPConfig
from vita_audio.models.mtp_model import MTPBackbone, MTPForCausalLM


class Qwen2MTPConfig(MTPConfig, Qwen2Config):
    """Qwen2Config with `MTPConfig`."""

    model_type = "qwen2_mtp"


class Qwen2MTPModel(MTPBackbone, Qwen2Model):
    """Qwen2Model with `MTPBackbone`."""

    config_class = Qwen2MTPConfig


class Qwen2MTPForCausalLM(MTPForCausalLM, Qwen2ForCausalLM):
    """Qwen2ForCausalLM with `MTPForCausalLM`."""

    config_class = Qwen2MTPConfig
    backbone_class = Qwen2MTPModel

"""Speech language models; importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from vita_audio.models.qwen2_mtp import Qwen2MTPConfig, Qwen2MTPForCausalLM

AutoConfig.register(Qwen2MTPConfig.model_type, Qwen2MTPConfig)
AutoModelForCausalLM.register(Qwen2MTPConfig, Qwen2MTPForCausalLM)

__all__ = ["Qwen2MTPConfig", "Qwen2MTPForCausalLM"]

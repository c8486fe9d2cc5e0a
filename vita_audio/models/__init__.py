"""Speech language models; importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from vita_audio.models.qwen2_mtp import Qwen2MTPConfig, Qwen2MTPForCausalLM
from vita_audio.models.qwen2_mtp_sensevoice import Qwen2MTPSenseVoiceConfig, Qwen2MTPSenseVoiceForCausalLM

for model_class in (Qwen2MTPForCausalLM, Qwen2MTPSenseVoiceForCausalLM):
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModelForCausalLM.register(model_class.config_class, model_class)

SPEECH_CONFIGS = (Qwen2MTPConfig, Qwen2MTPSenseVoiceConfig)  # configurations of all models here

__all__ = [
    "SPEECH_CONFIGS",
    "Qwen2MTPConfig",
    "Qwen2MTPForCausalLM",
    "Qwen2MTPSenseVoiceConfig",
    "Qwen2MTPSenseVoiceForCausalLM",
]

"""Speech language models; importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from vita_audio.models.llama_mtp import LlamaMTPConfig, LlamaMTPForCausalLM
from vita_audio.models.mtp_config import MTPConfig
from vita_audio.models.mtp_model import MTPForCausalLM
from vita_audio.models.qwen2_mtp import Qwen2MTPConfig, Qwen2MTPForCausalLM
from vita_audio.models.qwen2_mtp_sensevoice import Qwen2MTPSenseVoiceConfig, Qwen2MTPSenseVoiceForCausalLM
from vita_audio.models.qwen3_mtp import Qwen3MTPConfig, Qwen3MTPForCausalLM

TEXT_CONFIGS = (Qwen2Config, Qwen3Config, LlamaConfig)  # of the text models that training can start from
SPEECH_MODELS = (Qwen2MTPForCausalLM, Qwen3MTPForCausalLM, LlamaMTPForCausalLM, Qwen2MTPSenseVoiceForCausalLM)
SPEECH_CONFIGS = tuple(model_class.config_class for model_class in SPEECH_MODELS)
LANGUAGE_CONFIGS = (*TEXT_CONFIGS, *SPEECH_CONFIGS)

for model_class in SPEECH_MODELS:
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModelForCausalLM.register(model_class.config_class, model_class)

__all__ = [
    "LANGUAGE_CONFIGS",
    "SPEECH_CONFIGS",
    "SPEECH_MODELS",
    "TEXT_CONFIGS",
    "LlamaMTPConfig",
    "LlamaMTPForCausalLM",
    "MTPConfig",
    "MTPForCausalLM",
    "Qwen2MTPConfig",
    "Qwen2MTPForCausalLM",
    "Qwen2MTPSenseVoiceConfig",
    "Qwen2MTPSenseVoiceForCausalLM",
    "Qwen3MTPConfig",
    "Qwen3MTPForCausalLM",
]

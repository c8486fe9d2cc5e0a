"""Let vLLM's `{"method": "mtp"}` find the MTP modules of a checkpoint.

vLLM decides by a chain of conditions over its own models in `SpeculativeConfig.hf_config_override` which class drafts
for a configuration. There is no hook, so that function is replaced, once.
"""

from __future__ import annotations

from transformers import PreTrainedConfig
from vllm.config.speculative import SpeculativeConfig

from vita_audio_vllm.checkpoint import check_drafts
from vita_audio_vllm.config import EngineConfig

ARCHITECTURE = "Qwen2MTPDrafts"
DRAFT_TYPE = "mtp"  # the one of vLLM's types of drafts that names no model

_original = SpeculativeConfig.hf_config_override


def hf_config_override(config: PreTrainedConfig) -> PreTrainedConfig:
    """Turn the configuration of a VITA-Audio model into that of its modules; leave others to vLLM.

    A function of this module, since vLLM pickles it for its other processes.

    Raises: ValueError as `check_drafts` does.
    """
    if not isinstance(config, EngineConfig):
        return _original(config)
    check_drafts(config.model_type, config.num_nextn_predict_layers)
    config.model_type, config.architectures = DRAFT_TYPE, [ARCHITECTURE]
    config.n_predict = config.num_nextn_predict_layers
    config.layer_types = None  # a list would have to name the modules' layers too
    return config


def install() -> None:
    """Replace vLLM's function by the one above; calling it again changes nothing."""
    SpeculativeConfig.hf_config_override = staticmethod(hf_config_override)


def uninstall() -> None:
    """Put vLLM's own function back."""
    SpeculativeConfig.hf_config_override = staticmethod(_original)

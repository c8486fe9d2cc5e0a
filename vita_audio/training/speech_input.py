"""Continuous speech input in a stage: agreement of model and tokenizer, encoder weights, frozen parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.models import Qwen2MTPConfig, Qwen2MTPForCausalLM, Qwen2MTPSenseVoiceConfig
from vita_audio.models.qwen2_mtp_sensevoice import AUDIO_ENCODER, AUDIO_PROJECTION
from vita_audio.models.surgery import load_speech_encoder
from vita_audio.text import TextTokenizer
from vita_audio.training.settings import StageSettings

logger = logging.getLogger(__name__)


def check_speech_input(config: Qwen2MTPConfig, tokenizer: TextTokenizer, settings: StageSettings) -> None:
    """Check that model and tokenizer agree on continuous speech input.

    Raises: ValueError if only one of them has it, or for settings that need a speech encoder.
    """
    has_encoder, roles = isinstance(config, Qwen2MTPSenseVoiceConfig), tokenizer.continuous_roles
    if roles and not has_encoder:
        raise ValueError(
            f"audio of {', '.join(roles)} is continuous input, but the model ({config.model_type}) has no speech "
            f"encoder; set --config_name to a {Qwen2MTPSenseVoiceConfig.model_type} one, or --audio_tokenizer_type to "
            "one without sensevoice_"
        )
    if has_encoder and not roles:
        raise ValueError(
            "the model has a speech encoder, but audio of no role is continuous input; set --audio_tokenizer_type to "
            "one with sensevoice_, or --audio_input"
        )
    if not has_encoder and (settings.audio_model_freeze or settings.audio_model_name_or_path):
        raise ValueError(
            f"--audio_model_freeze and --audio_model_name_or_path need a model with a speech encoder, got "
            f"{config.model_type}; leave them out or set --config_name"
        )


def prepare_speech_encoder(model: Qwen2MTPForCausalLM, missing: Iterable[str], settings: StageSettings) -> set[str]:
    """Load the speech encoder into a model whose other weights are loaded.

    Args:
        model: The model.
        missing: Parameters that the checkpoint lacked.
        settings: Settings of the stage.
    Returns: The missing parameters outside the speech encoder and its projection.
    Raises: FileNotFoundError, ValueError for a folder whose weights do not fit, or if no folder has an encoder.
    """
    missing = set(missing)
    encoder = {name for name in missing if name.startswith(f"{AUDIO_ENCODER}.")}
    projection = {name for name in missing if name.startswith(f"{AUDIO_PROJECTION}.")}
    if settings.audio_model_name_or_path:
        folder = find_checkpoint(settings.audio_model_name_or_path)
        load_speech_encoder(model, folder)
        logger.info("speech encoder from %s", folder)
    elif encoder:
        raise ValueError(
            f"the checkpoint lacks the speech encoder ({len(encoder)} tensors such as {min(encoder)}); give "
            "--audio_model_name_or_path, the folder of a SenseVoiceSmall"
        )
    if projection:
        logger.info("the projection of the speech encoder starts at random")
    return missing - encoder - projection


def frozen_speech_patterns(config: Qwen2MTPConfig, settings: StageSettings) -> list[str]:
    """Return the patterns for `set_trainable` that freeze the encoder, or its unused CTC head if the encoder trains."""
    if not isinstance(config, Qwen2MTPSenseVoiceConfig):
        return []
    return [f"{AUDIO_ENCODER}.*" if settings.audio_model_freeze else f"{AUDIO_ENCODER}.model.ctc.*"]

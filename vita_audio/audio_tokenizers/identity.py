"""Identify the audio tokenizer whose codes a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .base import AudioTokenizer


def describe_audio_tokenizer(audio_tokenizer: AudioTokenizer) -> dict[str, str]:
    """Return the entry of a model's configuration that identifies its audio tokenizer."""
    return {"type": audio_tokenizer.name, "fingerprint": audio_tokenizer.fingerprint}


def check_audio_tokenizer(trained_with: Mapping[str, str], given: Mapping[str, str], model_name: str | Path) -> None:
    """Check that a model was trained on the codes of an audio tokenizer.

    Args:
        trained_with: Entry of the model's configuration, from `describe_audio_tokenizer`.
        given: Description of the audio tokenizer to be used.
    Raises: ValueError if they differ.
    """
    if trained_with == given:
        return
    other = f"other weights of {given['type']}"
    if trained_with["type"] != given["type"]:
        other = f"{given['type']} instead of {trained_with['type']}"
    raise ValueError(
        f"{model_name} was trained on codes of the audio tokenizer {trained_with['fingerprint']}, got "
        f"{given['fingerprint']}: {other}, whose codes mean something else; give the folder of the one it was trained "
        "with"
    )

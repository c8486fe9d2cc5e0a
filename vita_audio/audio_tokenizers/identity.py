"""Which audio tokenizer made the codes that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .base import AudioTokenizer


def describe_audio_tokenizer(audio_tokenizer: AudioTokenizer) -> dict[str, str]:
    """Return what a model's configuration remembers of the audio tokenizer that made its codes."""
    return {"type": audio_tokenizer.name, "fingerprint": audio_tokenizer.fingerprint}


def check_audio_tokenizer(trained_with: Mapping[str, str], given: Mapping[str, str], model_name: str | Path) -> None:
    """Check that codes mean the same to a model and to an audio tokenizer.

    Args:
        trained_with: What the model's configuration remembers.
        given: The description of the audio tokenizer at hand.
        model_name: For the message.
    Raises: ValueError if the model was trained on codes of another one.
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

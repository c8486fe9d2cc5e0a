"""Audio tokenizers, which convert waves to codes and back; `get_audio_tokenizer` loads one by its name."""

from importlib import import_module
from pathlib import Path

from .base import AudioStream, AudioTokenizer, Voice

__all__ = [
    "AUDIO_TOKENIZERS",
    "TYPES",
    "AudioStream",
    "AudioTokenizer",
    "Voice",
    "get_audio_tokenizer",
    "is_continuous",
]

AUDIO_TOKENIZERS = {  # name -> module:class, imported on demand
    "glm4voice": "glm4voice:GLM4VoiceTokenizer",
    "cosyvoice2": "cosyvoice2:CosyVoice2Tokenizer",
    "snac24khz": "snac24khz:SNAC24kHzTokenizer",
    "sparktts": "sparktts:SparkTTSTokenizer",
}

# Prefix of an audio tokenizer's name: audio that the model hears enters it as SenseVoice features, answers as codes.
CONTINUOUS_PREFIX = "sensevoice_"
TYPES = (*AUDIO_TOKENIZERS, *(CONTINUOUS_PREFIX + name for name in AUDIO_TOKENIZERS))


def is_continuous(audio_tokenizer_type: str) -> bool:
    """Return whether a type, one of `TYPES`, has continuous input as well as codes."""
    return audio_tokenizer_type.startswith(CONTINUOUS_PREFIX)


def get_audio_tokenizer(
    name: str,
    path: str | Path | None = None,
    decoder_path: str | Path | None = None,
    *,
    device: str = "cpu",
    **options,
) -> AudioTokenizer:
    """Load an audio tokenizer.

    Args:
        name: One of `TYPES`. How audio enters the model makes no difference here, see `TextTokenizer.audio_input`.
        path: Folder or hub name of the weights that make codes; None or "embedded" for the small ones in this package.
        decoder_path: Folder or hub name of the weights that make waves. None: the embedded ones with the embedded
            tokenizer, otherwise none, and only `encode` works.
        options: More arguments for `AudioTokenizer.from_pretrained`.
    Raises: ValueError for an unknown name or weights that do not fit; FileNotFoundError.
    """
    name = name.removeprefix(CONTINUOUS_PREFIX)
    if name not in AUDIO_TOKENIZERS:
        raise ValueError(f"unknown audio tokenizer {name!r}; known are {', '.join(AUDIO_TOKENIZERS)}")
    module_name, class_name = AUDIO_TOKENIZERS[name].split(":")
    tokenizer_class = getattr(import_module(f".{module_name}", __name__), class_name)
    return tokenizer_class.from_pretrained(path, decoder_path, device=device, **options)

"""Audio tokenizers, which convert waves to codes and back; `get_audio_tokenizer` loads one by its name."""

from importlib import import_module
from pathlib import Path

from vita_audio.constants import AUDIO_TOKENIZERS, CONTINUOUS_PREFIX

from .base import AudioStream, AudioTokenizer, Voice

__all__ = ["AUDIO_TOKENIZERS", "AudioStream", "AudioTokenizer", "Voice", "get_audio_tokenizer", "is_continuous"]


def is_continuous(audio_tokenizer_type: str) -> bool:
    """Return whether a type, one of `AUDIO_TOKENIZER_TYPES`, means continuous input as well as codes."""
    return audio_tokenizer_type.startswith(CONTINUOUS_PREFIX)


def get_audio_tokenizer(
    name: str, path: str | Path | None = None, decoder_path: str | Path | None = None, *, device: str = "cpu", **options
) -> AudioTokenizer:
    """Load an audio tokenizer by its name; other arguments as in `AudioTokenizer.from_pretrained`.

    Args:
        name: One of `AUDIO_TOKENIZER_TYPES`. How audio enters the model (`TextTokenizer.audio_input`) makes no
            difference here.
        path: Folder of the weights that make codes. None or "embedded": the small weights of this package.
        decoder_path: Folder of the weights that make waves. None: the embedded decoder for the embedded tokenizer;
            with other tokenizers only `encode` works.
        options: More arguments of the class.
    Raises: ValueError for an unknown name, and the exceptions of `AudioTokenizer.from_pretrained`.
    """
    name = name.removeprefix(CONTINUOUS_PREFIX)
    if name not in AUDIO_TOKENIZERS:
        raise ValueError(f"unknown audio tokenizer {name!r}; known are {', '.join(AUDIO_TOKENIZERS)}")
    module_name, class_name = AUDIO_TOKENIZERS[name].split(":")
    tokenizer_class = getattr(import_module(f".{module_name}", __name__), class_name)
    return tokenizer_class.from_pretrained(path, decoder_path, device=device, **options)

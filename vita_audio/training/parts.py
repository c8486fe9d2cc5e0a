"""The parts of a model whose parameters are counted, trained and logged apart."""

from __future__ import annotations

from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from vita_audio.models.qwen2_mtp_sensevoice import AUDIO_ENCODER, AUDIO_PROJECTION
from vita_audio.models.surgery import mtp_parameter_patterns

BACKBONE, HEAD, AUDIO, MTP = PARTS = ("backbone", "head", "audio", "mtp")
TABLES = ("model.embed_tokens.", "lm_head.")
TITLES = {BACKBONE: "backbone", HEAD: "embeddings and head", AUDIO: "speech encoder", MTP: "MTP modules"}


def parameter_parts(model: PreTrainedModel) -> dict[str, str]:
    """Return the part, one of `PARTS`, of every parameter by name; tied parameters count once."""
    patterns = mtp_parameter_patterns(model.config)

    def part(name: str) -> str:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return MTP
        if name.startswith((f"{AUDIO_ENCODER}.", f"{AUDIO_PROJECTION}.")):
            return AUDIO
        return HEAD if name.startswith(TABLES) else BACKBONE

    return {name: part(name) for name, _ in model.named_parameters()}

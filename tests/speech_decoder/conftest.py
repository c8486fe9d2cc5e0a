"""The tiny speech decoder of the golden cases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder

ASSETS = Path(__file__).parents[1] / "assets" / "speech_decoder"


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return ASSETS / "tiny"


@pytest.fixture(scope="session")
def decoder(tiny_folder: Path) -> SpeechDecoder:
    decoder = SpeechDecoder.from_pretrained(tiny_folder)
    decoder.flow.requires_grad_(False)
    decoder.hift.requires_grad_(False)
    return decoder


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    return lambda name: load_file(ASSETS / f"{name}.safetensors")


@pytest.fixture(scope="session")
def facts() -> Callable[[str], Any]:
    return lambda name: json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))

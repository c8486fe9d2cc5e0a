"""Special tokens and vocabulary sizes of the public release."""

import json
from pathlib import Path

import pytest

from vita_audio.audio_tokenizers import is_continuous
from vita_audio.constants import AUDIO_CODE_FORMAT, AUDIO_TOKENIZER_TYPES, structural_tokens

LAYOUTS = json.loads((Path(__file__).parent / "assets" / "token_layouts" / "case.json").read_text(encoding="utf-8"))
TOKENS = LAYOUTS["layouts"]["special_tokens"]
RELEASED = ("glm4voice", "sensevoice_glm4voice", "cosyvoice2", "snac24khz", "sensevoice_sparktts")


@pytest.mark.parametrize("name", RELEASED)
def test_structural_tokens_come_in_the_released_order(name):
    assert list(structural_tokens(continuous_input=is_continuous(name))) == TOKENS[name]
    assert name in AUDIO_TOKENIZER_TYPES


def test_text_only_vocabularies_have_fewer():
    assert list(structural_tokens(audio=False)) == TOKENS["none"]


def test_codes_are_written_as_released():
    assert TOKENS["audio_token_format"].startswith(AUDIO_CODE_FORMAT.format("{i}"))
    example = LAYOUTS["layouts"]["glm4voice"]["example"]
    assert "".join(map(AUDIO_CODE_FORMAT.format, example["codes"])) == example["text"]

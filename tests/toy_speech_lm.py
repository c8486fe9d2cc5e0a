"""A tiny speech language model of the real classes with random weights, as folders, shared by several test folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from audio_tokenizers.tiny_folders import NUM_CODES, make_glm4voice_folders
from models.toy_models import make_model, make_plus_model
from transformers import GenerationConfig

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.text import TextTokenizer

TINY_TOKENIZER = Path(__file__).parent / "assets" / "tiny_tokenizer"


@dataclass(frozen=True)
class ToyFolders:
    """Folders as a user has them: checkpoint with text tokenizer, audio tokenizer, speech decoder."""

    model: Path
    audio_tokenizer: Path
    audio_decoder: Path


def make_toy_folders(folder: Path, *, num_modules: int = 4, audio_input: Mapping[str, str] | None = None) -> ToyFolders:
    """Write all folders; the model is loud about audio codes, so that random answers hold text and audio.

    Args:
        audio_input: As in TextTokenizer; with continuous input the model is a Plus one.
    """
    torch.manual_seed(0)
    audio_tokenizer, audio_decoder = make_glm4voice_folders(folder)
    tokenizer = TextTokenizer.from_pretrained(TINY_TOKENIZER, NUM_CODES, audio_input=audio_input)
    make = make_plus_model if tokenizer.continuous_roles else make_model
    model = make(num_modules, vocab_size=tokenizer.padded_size, max_position_embeddings=512)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.begin_of_audio_id : tokenizer.end_of_audio_id + 1] *= 1.5
        model.lm_head.weight[tokenizer.first_audio_id :] *= 1.5
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.im_end_id, tokenizer.pad_id],
        pad_token_id=tokenizer.pad_id,
        mtp_inference_mode=[1, 10, 4, 10],
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    if tokenizer.continuous_roles:
        SenseVoiceFrontEnd(torch.full((560,), -8.0), torch.full((560,), 0.2)).save_pretrained(folder / "model")
    return ToyFolders(folder / "model", audio_tokenizer, audio_decoder)


def load_toy(folders: ToyFolders) -> SpeechLM:
    audio_tokenizer = get_audio_tokenizer("glm4voice", folders.audio_tokenizer, folders.audio_decoder, num_steps=2)
    return SpeechLM.from_pretrained(folders.model, audio_tokenizer, device="cpu")

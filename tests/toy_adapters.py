"""Adapters with random weights on toy models."""

import copy

import torch
from toy_speech_lm import load_toy

from vita_audio.models.adapters import describe_base, save_whole_config
from vita_audio.training.lora import LoraSettings
from vita_audio.training.stage_adapter import add_adapter

ROWS = range(90, 101)  # tokens whose rows train


def adapted(base, lora=None, *, token_ids=ROWS, new=(), frozen=False, seed=1):
    """Return a copy of a model with an adapter whose weights are random."""
    model = copy.deepcopy(base)
    add_adapter(model, lora or LoraSettings(r=4), token_ids=token_ids, new=new, frozen=frozen)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def save_toy_adapter(toy_folders, folder, *, lora=None, seed=1):
    """Write an adapter on the toy model that makes other answers, as training does; return its folder."""
    speech_lm = load_toy(toy_folders)
    rows = range(speech_lm.tokenizer.first_audio_id, len(speech_lm.tokenizer))
    model = adapted(speech_lm.model, lora, token_ids=rows, seed=seed)
    model.save_pretrained(folder)
    save_whole_config(model.config, describe_base(toy_folders.model), folder)
    speech_lm.tokenizer.save_pretrained(folder)
    return folder

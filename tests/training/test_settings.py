"""Settings of a stage: made once from its flags, and frozen."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from vita_audio.interleave import InterleavePlan
from vita_audio.training.arguments import parse_arguments
from vita_audio.training.curriculum import LengthCurriculum
from vita_audio.training.settings import stage_settings


def settings(toy_run, output_dir, **changes):
    return stage_settings(*parse_arguments(toy_run.flags(output_dir, **changes)))


def test_settings_hold_the_values_of_their_flags(toy_run, tmp_path):
    flags = {"audio_model_freeze": True, "mtp_kl_weight": 0.5, "seed": 7, "preprocessing_num_workers": 2}
    found = settings(toy_run, tmp_path, text_audio_interval_ratio="1 10", audio_input="user=both", **flags)
    assert {name: getattr(found, name) for name in flags} == flags
    assert (found.plan, found.audio_input) == (InterleavePlan.parse("turbo"), {"user": "both"})
    with pytest.raises(FrozenInstanceError):
        found.seed = 8


def test_what_no_flag_says_follows_from_the_others(toy_run, tmp_path):
    flags = toy_run.flags(tmp_path)
    for name in ("--audio_code_dir", "--pack_cache_dir"):
        place = flags.index(name)
        del flags[place : place + 2]
    found = stage_settings(*parse_arguments(flags))
    assert (found.audio_code_dir, found.pack_cache_dir) == (tmp_path / "audio_codes", tmp_path / "packs")
    assert found.tokenizer_name == found.model_name_or_path == str(toy_run.text_model)
    assert settings(toy_run, tmp_path, tokenizer_name="other").tokenizer_name == "other"
    assert settings(toy_run, tmp_path, audio_code_dir="codes").audio_code_dir == Path("codes")


def test_a_curriculum_ends_with_whole_packs(toy_run, tmp_path):
    assert settings(toy_run, tmp_path).curriculum is None
    found = settings(toy_run, tmp_path, curriculum_length=16, curriculum_ratio=0.25)
    assert found.curriculum == LengthCurriculum(start=16, end=found.model_max_length, ratio=0.25)


def test_bfloat16_weights_need_deepspeed(toy_run, tmp_path):
    """DeepSpeed keeps a float32 copy, plain training would round its updates away."""
    model, data, training = parse_arguments(toy_run.flags(tmp_path, bf16=True))
    assert stage_settings(model, data, training).dtype is torch.float32
    training.deepspeed = "ds_config.json"
    assert stage_settings(model, data, training).dtype is torch.bfloat16

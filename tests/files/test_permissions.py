"""Weights that we save can be read by those whom the umask lets read new files."""

import os

import pytest
import torch
from audio_tokenizers.tiny_folders import make_glm4voice_folders
from models.toy_models import make_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from vita_audio.files.permissions import restore_permissions
from vita_audio.models.adapters import save_whole_config


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def new_file_mode(request):
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode_of(path):
    return path.stat().st_mode & 0o777


def test_weights_get_the_permissions_of_new_files(tmp_path, new_file_mode):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "secret.json").touch(mode=0o600)
    restore_permissions(tmp_path)
    assert mode_of(tmp_path / "model.safetensors") == new_file_mode and mode_of(tmp_path / "secret.json") == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_a_model_and_an_adapter_are_saved_so(tmp_path, new_file_mode):
    model = make_model(1)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    files = list((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 1 and {*map(mode_of, files)} == {new_file_mode}

    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    save_whole_config(model.config, {"base": "model", "fingerprint": "0"}, tmp_path / "adapter")
    assert mode_of(tmp_path / "adapter" / "adapter_model.safetensors") == new_file_mode


def test_a_speech_tokenizer_and_a_decoder_are_saved_so(tmp_path, new_file_mode):
    make_glm4voice_folders(tmp_path)
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3 and {*map(mode_of, files)} == {new_file_mode}

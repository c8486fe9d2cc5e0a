"""A configuration that ties the output head to the embeddings, and weights that say otherwise.

Merged adapters of small Qwen2.5 models leave such checkpoints; their head must not be lost.
"""

import json
import shutil

import pytest
import torch
from files.released_folders import as_shards
from safetensors.torch import load_file, save_file

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.checkpoints.export import export_checkpoint
from vita_audio.checkpoints.inspection import inspect_checkpoint
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.loading import EMBEDDINGS, HEAD, load_weights, read_config


@pytest.fixture
def make(toy_folders, tmp_path):
    """Write a checkpoint: whether config.json ties, and the head in the weight file, None for no head."""

    def make_folder(tied, head):
        folder = tmp_path / "model"
        shutil.copytree(toy_folders.model, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
        weights = load_file(folder / "model.safetensors")
        weights.pop(HEAD, None)
        heads = {"equal": weights[EMBEDDINGS].clone(), "other": weights[EMBEDDINGS].flip(0).contiguous()}
        save_file(weights | ({HEAD: heads[head]} if head else {}), folder / "model.safetensors", {"format": "pt"})
        return folder

    return make_folder


def load(folder):
    return load_weights(folder, read_config(folder, SPEECH_CONFIGS))


def as_torch_file(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("layout", [None, as_shards, as_torch_file])
def test_a_head_of_its_own_is_kept(make, caplog, layout, tmp_path):
    folder = make(True, "other")
    stored = load_file(folder / "model.safetensors")
    if layout:
        layout(folder)
    model, missing = load(folder)
    assert not missing and model.config.tie_word_embeddings is False
    assert f"{folder / 'config.json'} says tie_word_embeddings" in caplog.text
    model.save_pretrained(tmp_path / "again")
    caplog.clear()
    for again in (model, load(tmp_path / "again")[0]):
        assert torch.equal(again.lm_head.weight, stored[HEAD])
        assert torch.equal(again.model.embed_tokens.weight, stored[EMBEDDINGS])
    assert not caplog.text  # what is saved agrees with itself


@pytest.mark.parametrize("head", ["equal", None])
def test_a_tied_head_stays_tied(make, caplog, head):
    model, missing = load(make(True, head))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings and not missing and not caplog.text


def test_an_answer_uses_the_head(make, toy_folders):
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)
    folder = make(True, "other")
    model = SpeechLM.from_pretrained(folder, audio_tokenizer, "cpu").model
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")[HEAD])


def test_an_untied_model_needs_a_head(make, toy_folders):
    folder = make(False, None)
    with pytest.raises(ValueError, match=f"do not fit .*{HEAD}"):
        SpeechLM.from_pretrained(folder, get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer), "cpu")
    assert any(HEAD in problem for problem in inspect_checkpoint(folder).problems)


def test_the_inspection_counts_the_head(make):
    folder = make(True, "other")
    report = inspect_checkpoint(folder)
    assert not report.problems
    assert report.num_parameters == sum(value.numel() for value in load_file(folder / "model.safetensors").values())


def test_an_export_says_untied(make, tmp_path):
    export_checkpoint(make(True, "other"), tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["tie_word_embeddings"] is False
    assert HEAD in load_file(tmp_path / "exported" / "model.safetensors")

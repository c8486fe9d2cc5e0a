"""The four stages on other text models than Qwen2."""

import pytest
import torch
from safetensors.torch import load_file
from toy_run import NUM_BACKBONE_LAYERS, NUM_TEXT_ROWS, SETTINGS, TINY_TOKENIZER, logged
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from tools.finetune_sts import main as train
from vita_audio.checkpoints.inspection import inspect_checkpoint
from vita_audio.models import LlamaMTPConfig, Qwen3MTPConfig

UNTIED = {"head_dim": 16, "tie_word_embeddings": False}
BASES = {"qwen3": (Qwen3Config, Qwen3MTPConfig, UNTIED), "llama": (LlamaConfig, LlamaMTPConfig, {})}


@pytest.fixture(scope="module", params=BASES)
def stages(request, toy_run, tmp_path_factory):
    """The folders of the stages, one after the other, two steps each."""
    text_class, speech_class, changes = BASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = text_class(num_hidden_layers=NUM_BACKBONE_LAYERS, vocab_size=NUM_TEXT_ROWS, **SETTINGS | changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "0")
    AutoTokenizer.from_pretrained(TINY_TOKENIZER).save_pretrained(folder / "0")
    one, three = (toy_run.config(number, config_class=speech_class, **changes) for number in (1, 3))
    flags = [
        {"extract_codes": True},
        {"config_name": one, "language_model_freeze": True},
        {"config_name": three, "language_model_freeze": True},
        {"config_name": three, "mtp_model_lr_mult": 10},
    ]
    for number, more in enumerate(flags, start=1):
        start = folder / str(number - 1)
        train(toy_run.flags(folder / str(number), model_name_or_path=start, max_steps=2, **more))
    return [folder / str(number) for number in range(1, 5)]


def test_each_stage_trains_its_part(stages):
    first, second, third, fourth = (load_file(folder / "model.safetensors") for folder in stages)
    for name, value in first.items():
        assert torch.equal(second[name], value) and torch.equal(third[name], value), name
        assert not torch.equal(fourth[name], value), name
    assert all(not torch.equal(fourth[name], value) for name, value in third.items())
    assert all(len(logged(folder)) == 2 for folder in stages)


def test_its_folders_are_recognised(stages):
    text, trained = (inspect_checkpoint(folder) for folder in (stages[0].parent / "0", stages[-1]))
    assert text.problems == trained.problems == []
    assert trained.kind == f"{text.kind}_mtp"


def test_the_result_decodes_with_modules(stages):
    model = AutoModelForCausalLM.from_pretrained(stages[-1]).eval()
    output = model.generate(torch.arange(10)[None], do_sample=False, max_new_tokens=20, return_dict_in_generate=True)
    assert set(output.steps) == {0, 1, 2, 3}

"""The dry run: what it prints for flags of every kind, and that it needs and leaves nothing."""

import re

import pytest
import torch
from toy_run import NUM_TEXT_ROWS, ROOT, SETTINGS
from transformers import Qwen2Config

from tools.finetune_sts import main as train
from vita_audio.audio_tokenizers import AUDIO_TOKENIZERS, get_audio_tokenizer
from vita_audio.audio_tokenizers.snac24khz import SNAC24kHzTokenizer
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig
from vita_audio.constants import structural_tokens
from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.loading import read_config
from vita_audio.speech_decoder.cosyvoice2.flow import CosyVoice2FlowConfig
from vita_audio.text import TextTokenizer
from vita_audio.training.arguments import parse_flags
from vita_audio.training.dry_run import RELEASED_CODES, dry_run
from vita_audio.training.memory import StepMemory, empty_model


@pytest.fixture
def describe(toy_run, tmp_path):
    """Return the text and its tables, first cell -> the others."""

    def run(**changes):
        text = dry_run(parse_flags([*toy_run.flags(tmp_path / "run", dry_run=True, **changes)]))
        rows = [re.split(r" {2,}", line) for line in text.splitlines()]
        return text, {row[0].removesuffix(" <-"): row[1:] for row in rows if len(row) > 1}

    return run


def test_a_stage_with_a_frozen_language_model(describe, toy_run, tmp_path):
    text, tables = describe(
        config_name=toy_run.config(2, hidden_size=512, intermediate_size=2048),
        model_name_or_path=tmp_path / "missing",
        language_model_freeze=True,
        tokens_per_second=100,
    )
    layer = 2 * 512 * 512 + 2 * 512 * 256 + 512 + 2 * 256 + 3 * 512 * 2048 + 2 * 512  # of two heads and one pair
    modules = 2 * (layer + 2 * 512 * 512 + 2 * 512)
    table = NUM_TEXT_ROWS * 512
    assert tables["MTP modules"] == [f"{modules / 1e6:.1f}"] * 2
    assert tables["backbone"] == [f"{(2 * layer + 512) / 1e6:.1f}", "0.0"]
    assert tables["embeddings and head"] == [f"{table / 1e6:.1f}", "0.0"]  # tied
    assert "8 GPUs, 2 x 128 tokens each, float32, no gradient checkpointing" in text
    assert "16 packs, up to 2,048 tokens, in a step" in text
    assert f"{4 * 2048 / 100 / 24 / 3600:.2f} days at 100 tokens/s" in text
    assert not (tmp_path / "run").exists()


def test_a_plain_checkpoint_gets_rows_for_the_audio_codes(describe, toy_run, tmp_path):
    sizes = {"hidden_size": 2**14, "intermediate_size": 64}  # the table is large enough to see its rows
    num_codes = get_audio_tokenizer("glm4voice", toy_run.audio_tokenizer).vocab_size
    table = TextTokenizer.from_pretrained(toy_run.text_model, num_codes).padded_size * 2**14
    Qwen2Config(**SETTINGS | sizes, num_hidden_layers=2, vocab_size=NUM_TEXT_ROWS).save_pretrained(tmp_path)
    for config in (None, toy_run.config(1, **sizes)):
        changes = {"config_name": config} if config else {}
        _, tables = describe(model_name_or_path=tmp_path, tokenizer_name=toy_run.text_model, **changes)
        assert tables["embeddings and head"] == [f"{table / 1e6:.1f}"] * 2


def test_a_speech_checkpoint_keeps_its_rows(describe, toy_run):
    """Configurations of other stages may have been made for another tokenizer."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048}
    start = toy_run.config(1, vocab_size=4000, **sizes).parent
    _, tables = describe(model_name_or_path=start, config_name=toy_run.config(2, **sizes))
    assert tables["embeddings and head"] == ["2.0", "2.0"]  # 4000 x 512


@pytest.fixture
def describe_without_weights(describe, tmp_path):
    def run(name, **changes):
        missing = {"model_name_or_path": "Qwen/missing", "audio_tokenizer_path": tmp_path / "missing"}
        return describe(config_name=ROOT / "configs" / "models" / f"{name}.json", **missing, **changes)[1]

    return run


def test_the_first_stage_of_7b_has_the_parameters_of_the_resized_model(describe_without_weights, qwen2_folder):
    """Its public configuration has the vocabulary of the text model."""
    config = read_config(ROOT / "configs" / "models" / "qwen2_7b_mtp0.json", SPEECH_CONFIGS)
    model = empty_model(config, torch.bfloat16)
    assert config.vocab_size == 152_064
    tokenizer = TextTokenizer.from_pretrained(qwen2_folder, RELEASED_CODES["glm4voice"])
    model.resize_token_embeddings(tokenizer.padded_size, mean_resizing=False)
    parts = {"embeddings and head": [model.model.embed_tokens, model.lm_head], "total": [model]}
    for changes in ({}, {"tokenizer_name": qwen2_folder}):
        tables = describe_without_weights("qwen2_7b_mtp0", **changes)
        for part, modules in parts.items():
            number = sum(parameter.numel() for module in modules for parameter in module.parameters())
            assert tables[part] == [f"{number / 1e6:,.1f}"] * 2


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("qwen2_7b_sensevoice_mtp0", "sensevoice_glm4voice", 168_072),
        ("qwen2_7b_mtp1", "glm4voice", 168_072),
        ("qwen2_7b_mtp1", "sparktts", 159_880),
        ("qwen3_8b_mtp1", "glm4voice", 168_080),
        ("tiny_mtp0", "glm4voice", 1024),
    ],
)
def test_without_weights_the_released_tokenizers_count(describe_without_weights, name, kind, rows):
    tables = describe_without_weights(name, audio_tokenizer_type=kind)
    config = read_config(ROOT / "configs" / "models" / f"{name}.json", SPEECH_CONFIGS)
    num_tables = 1 if config.tie_word_embeddings else 2
    assert tables["embeddings and head"] == [f"{num_tables * rows * config.hidden_size / 1e6:,.1f}"] * 2


def test_what_is_assumed_for_tokenizers_that_are_not_there_is_told(describe, toy_run, tmp_path):
    missing, large = tmp_path / "missing", ROOT / "configs" / "models" / "qwen2_7b_mtp0.json"
    here = {"config_name": toy_run.config(1), "model_name_or_path": missing, "tokenizer_name": toy_run.text_model}
    no_folder = f"tokenizer {missing} is not a local folder; assumed: the"
    assert "assumed" not in describe()[0] and "assumed" not in describe(**here)[0]
    for changes, told in (
        ({"audio_tokenizer_path": missing}, f"audio {no_folder} released one's 16384 codes"),
        ({"tokenizer_name": missing}, f"text {no_folder} configuration's {NUM_TEXT_ROWS} tokens"),
        ({"tokenizer_name": missing, "config_name": large}, f"text {no_folder} released one's 151665 tokens"),
    ):
        assert describe(**here | changes)[0].endswith(f"\n\n{told}")


def test_the_numbers_of_released_codes_are_those_of_the_codecs():
    assert RELEASED_CODES.keys() == AUDIO_TOKENIZERS.keys()
    assert RELEASED_CODES["glm4voice"] == WhisperVQConfig.quantize_vocab_size
    assert RELEASED_CODES["cosyvoice2"] == CosyVoice2FlowConfig().vocab_size
    assert RELEASED_CODES["snac24khz"] == SNAC24kHzTokenizer.vocab_size


def test_a_model_that_is_neither_here_nor_on_the_hub_is_named(describe):
    with pytest.raises(FileNotFoundError, match="owner/name is not a local folder and could not be downloaded"):
        describe(model_name_or_path="owner/name")


def test_zero_stages_are_listed_and_the_chosen_one_is_marked(describe, tmp_path):
    config = tmp_path / "zero.json"
    config.write_text('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}')
    text, tables = describe(deepspeed=config, bf16=True, num_gpus=4)
    names = ["no DeepSpeed", "ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3"]
    assert [name for name in tables if name in names] == names
    assert all(len(tables[name]) == len(StepMemory.__dataclass_fields__) + 1 for name in names)
    assert [line[:9] for line in text.splitlines() if " <-" in line] == ["ZeRO 3 <-"]
    assert "keeps optimizer in the memory of the CPU" in text and "4 GPUs" in text


def test_flags_that_do_not_fit_are_refused(describe, toy_run, capsys):
    with pytest.raises(ValueError, match="--language_model_freeze needs MTP modules"):
        describe(language_model_freeze=True)
    with pytest.raises(SystemExit) as stop:
        train([*toy_run.flags("unused", dry_run=True, model_max_length=9999)])
    assert stop.value.code == 2 and "exceeds the positions of the model" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["qwen2.5_0.5b", "qwen2.5_3b", "qwen3_0.6b", "qwen3_8b", "llama3.2_1b"])
def test_every_base_can_be_planned_without_its_weights(describe, base, tmp_path):
    config = ROOT / "configs" / "models" / f"{base}_mtp10.json"
    text, tables = describe(config_name=config, model_name_or_path=tmp_path / "missing", bf16=True)
    millions = 1000 * float(base.rsplit("_", 1)[1].removesuffix("b"))
    assert float(tables["backbone"][0].replace(",", "")) < 1.3 * millions
    assert tables["total"][0] == tables["total"][1] and "GiB on each GPU" in text


def test_an_adapter_is_counted(describe, toy_run, tmp_path):
    """Two matrices for each linear layer, and the rows of the tokens that speech adds; new modules have more."""
    config = toy_run.config(2, hidden_size=512, intermediate_size=2048)
    flags = {"lora": "r=64", "config_name": config, "model_name_or_path": tmp_path / "missing"}
    layer = 64 * (2 * (512 + 512) + 2 * (512 + 256) + 3 * (512 + 2048)) / 1e6
    projection = 64 * (1024 + 512) / 1e6
    rows = (64 + len(structural_tokens())) * 512 / 1e6
    _, tables = describe(**flags)
    trained = {part: row[1] for part, row in tables.items() if len(row) == 2}
    assert (trained["backbone"], trained["embeddings and head"]) == (f"{2 * layer:.1f}", f"{rows:.1f}")
    assert trained["MTP modules"] == f"{2 * (layer + projection):.1f}"
    _, tables = describe(**flags, language_model_freeze=True)
    trained = {part: row[1] for part, row in tables.items() if len(row) == 2}
    whole = (2 * 512 * 512 + 2 * 512) / 1e6
    assert (trained["backbone"], trained["MTP modules"]) == ("0.0", f"{2 * (layer + whole):.1f}")

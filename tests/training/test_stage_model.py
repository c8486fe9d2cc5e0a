import json
import shutil

import pytest
import torch
from audio_tokenizers.tiny_folders import NUM_CODES
from toy_run import NUM_BACKBONE_LAYERS, NUM_TEXT_ROWS, SETTINGS, TINY_TOKENIZER, make_merged_model
from transformers import MistralConfig, Qwen2Config, Qwen2ForCausalLM

from vita_audio.interleave import InterleavePlan
from vita_audio.models import Qwen2MTPForCausalLM, Qwen3MTPConfig
from vita_audio.text import TextTokenizer
from vita_audio.training.stage_model import depth_weights, load_stage_model, resolve_attention

NUM_TEXT_TOKENS = 736


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.from_pretrained(TINY_TOKENIZER, NUM_CODES)


@pytest.fixture
def load(toy_run, tokenizer):
    def load_model(audio_tokenizer=None, **changes):
        return load_stage_model(toy_run.settings(**changes), tokenizer, audio_tokenizer)

    return load_model


@pytest.fixture
def checkpoint(load, tmp_path):
    """A stage 1 model on disk."""
    load().save_pretrained(tmp_path / "stage1")
    return str(tmp_path / "stage1")


def test_a_text_model_gets_rows_for_new_tokens(load, toy_run, tokenizer):
    text_model = Qwen2ForCausalLM.from_pretrained(toy_run.text_model)
    model = load()
    table, text_table = model.model.embed_tokens.weight, text_model.model.embed_tokens.weight[:NUM_TEXT_TOKENS]
    assert model.config.vocab_size == len(table) == tokenizer.padded_size
    assert model.lm_head.weight is table
    torch.testing.assert_close(table[:NUM_TEXT_TOKENS], text_table, atol=0, rtol=0)
    new = table[NUM_TEXT_TOKENS:]
    assert torch.pdist(new).min() > 0.5 * torch.pdist(text_table).min()  # audio codes differ from each other
    torch.testing.assert_close(new.std(), text_table.std(), rtol=0.1, atol=0)
    torch.testing.assert_close(load().model.embed_tokens.weight, table, atol=0, rtol=0)


def test_separate_output_rows_are_drawn_like_the_output_rows(load, toy_run, tmp_path):
    config = Qwen2ForCausalLM.from_pretrained(toy_run.text_model).config
    config.tie_word_embeddings = False
    text_model = Qwen2ForCausalLM(config)
    text_model.lm_head.weight.data.mul_(3)
    text_model.save_pretrained(tmp_path)
    model = load(model_name_or_path=str(tmp_path))
    output = model.lm_head.weight
    torch.testing.assert_close(output[NUM_TEXT_TOKENS:].std(), output[:NUM_TEXT_TOKENS].std(), rtol=0.1, atol=0)
    assert model.model.embed_tokens.weight.std() < 0.5 * output.std()


def test_the_head_of_a_merged_adapter_survives_the_stages(load, toy_run, tmp_path, caplog):
    weights = make_merged_model(toy_run, tmp_path / "base")
    load(model_name_or_path=str(tmp_path / "base")).save_pretrained(tmp_path / "stage1")
    assert "says tie_word_embeddings, but the weights hold an lm_head.weight that differs" in caplog.text
    model = load(
        model_name_or_path=str(tmp_path / "stage1"), config_name=str(toy_run.config(1, tie_word_embeddings=False))
    )
    assert model.config.tie_word_embeddings is False
    for table, name in ((model.lm_head, "lm_head.weight"), (model.model.embed_tokens, "model.embed_tokens.weight")):
        assert torch.equal(table.weight[:NUM_TEXT_TOKENS], weights[name][:NUM_TEXT_TOKENS])
    new = slice(NUM_TEXT_TOKENS, None)
    shift = model.lm_head.weight[new].mean() - model.model.embed_tokens.weight[new].mean()
    assert shift.item() == pytest.approx(1, abs=0.1)  # new rows are drawn like those of their table
    with pytest.raises(ValueError, match="tie_word_embeddings is False in the checkpoint, True in the configuration"):
        load(model_name_or_path=str(tmp_path / "stage1"), config_name=str(toy_run.config(1)))


def test_an_untied_text_model_needs_its_head(load, toy_run, tmp_path):
    make_merged_model(toy_run, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    shutil.copy(toy_run.text_model / "model.safetensors", tmp_path / "base")
    with pytest.raises(ValueError, match="the checkpoint also lacks lm_head.weight"):
        load(model_name_or_path=str(tmp_path / "base"))


def test_the_backbone_of_a_text_model_is_kept(load, toy_run):
    model, text_model = load(), Qwen2ForCausalLM.from_pretrained(toy_run.text_model)
    input_ids = torch.arange(40)[None]
    expected = text_model.eval()(input_ids).logits
    torch.testing.assert_close(model.eval()(input_ids).logits[..., :NUM_TEXT_TOKENS], expected[..., :NUM_TEXT_TOKENS])


def test_a_stage_adds_modules_and_freezes_the_rest(load, toy_run, checkpoint):
    model = load(
        model_name_or_path=checkpoint,
        config_name=str(toy_run.config(3)),
        language_model_freeze=True,
        mtp_loss_weight=0.5,
        mtp_kl_weight=0.25,
        mtp_depth_weights=["vocalnet"],
        mtp_coordinator_weight=2.0,
        alignment_weight=0.125,
    )
    assert (model.config.num_backbone_layers, model.config.num_nextn_predict_layers) == (NUM_BACKBONE_LAYERS, 3)
    assert (model.config.mtp_loss_weight, model.config.mtp_kl_weight) == (0.5, 0.25)
    assert (model.config.mtp_coordinator_weight, model.config.alignment_weight) == (2.0, 0.125)
    assert model.config.mtp_depth_weights == pytest.approx([0.8, 0.64, 0.512])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {f"mtp_coordinators.{module}.weight" for module in range(3)} < trained
    modules = ("mtp_", *(f"model.layers.{layer}." for layer in range(2, 5)))
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(modules)}
    last, first = model.model.layers[1].state_dict(), model.model.layers[2].state_dict()
    assert all(torch.equal(last[name], first[name]) for name in last)


def test_a_checkpoint_of_another_text_model_is_refused(load, toy_run):
    with pytest.raises(ValueError, match="text model is qwen2 in the checkpoint, qwen3 in the configuration"):
        load(config_name=str(toy_run.config(1, config_class=Qwen3MTPConfig, head_dim=8)))


def test_everything_trains_without_freezing(load, toy_run):
    model = load(config_name=str(toy_run.config(1)))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_generation_defaults_are_those_of_the_released_models(load, tokenizer, tmp_path):
    load(plan=InterleavePlan.parse("balance")).save_pretrained(tmp_path)
    config = Qwen2MTPForCausalLM.from_pretrained(tmp_path).generation_config
    assert config.mtp_inference_mode == [1, 4, 3, 8, 4, 10]
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.7, 20, 0.8)
    assert config.repetition_penalty == 1.05
    assert config.eos_token_id == [tokenizer.im_end_id, tokenizer.pad_id]


def test_the_acceptance_of_decoding_is_stored_if_it_is_chosen(load, tmp_path):
    for acceptance, stored in ((None, False), (0.0, True), (0.7, True)):
        load(mtp_acceptance=acceptance).save_pretrained(tmp_path)
        config = Qwen2MTPForCausalLM.from_pretrained(tmp_path).generation_config
        assert hasattr(config, "acceptance") == stored and getattr(config, "acceptance", None) == acceptance


def test_random_weights_need_no_checkpoint(load, toy_run, tokenizer):
    model = load(model_name_or_path=None, config_name=str(toy_run.config(1)))
    assert model.config.vocab_size == tokenizer.padded_size
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 32}, "hidden_size is 16 in the checkpoint, 32 in the configuration"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 4},
            "head_dim is 8 in the checkpoint, 4 in the configuration; num_attention_heads is 2 .*; num_key_value_heads",
        ),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is True in the checkpoint, False in the configuration"),
        ({"num_hidden_layers": 6}, "number of backbone layers is 2 in the checkpoint, 5 in the configuration"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-06 in the checkpoint, 1e-05 in the configuration"),
        ({"hidden_act": "gelu"}, "hidden_act is silu in the checkpoint, gelu in the configuration"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters is"),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "layer_types is {} in the checkpoint, {1: 'sliding_attention'} in the configuration; "
            "sliding_window is None in the checkpoint, 8 in the configuration",
        ),
        ({"head_dim": 16}, "head_dim is 8 in the checkpoint, 16 in the configuration"),
    ],
)
def test_a_config_that_computes_something_else_is_refused(load, toy_run, settings, message):
    with pytest.raises(ValueError, match=message):
        load(config_name=str(toy_run.config(1, **settings)))


def test_a_sliding_window_is_not_lost(load, toy_run, tmp_path):
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config = Qwen2Config(num_hidden_layers=NUM_BACKBONE_LAYERS, vocab_size=NUM_TEXT_ROWS, **SETTINGS, **window)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    assert load(model_name_or_path=str(tmp_path)).config.sliding_window == 8
    config = load(model_name_or_path=str(tmp_path), config_name=str(toy_run.config(1, **window))).config
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="sliding_window is 8 in the checkpoint, None in the configuration"):
        load(model_name_or_path=str(tmp_path), config_name=str(toy_run.config(1)))


def test_fields_that_change_no_result_may_differ(load, toy_run):
    free = {"max_position_embeddings": 512, "attention_dropout": 0.1, "initializer_range": 0.1, "use_cache": False}
    config = load(config_name=str(toy_run.config(1, max_window_layers=1, bos_token_id=3, **free))).config
    assert (config.max_position_embeddings, config.attention_dropout) == (512, 0.1)


def test_modules_are_never_dropped(load, toy_run, tmp_path):
    load(config_name=str(toy_run.config(3))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the checkpoint has 3 MTP modules, the configuration only 1"):
        load(model_name_or_path=str(tmp_path), config_name=str(toy_run.config(1)))


def test_a_checkpoint_of_another_vocabulary_is_refused(toy_run, checkpoint):
    other = TextTokenizer.from_pretrained(TINY_TOKENIZER, 2 * NUM_CODES)
    with pytest.raises(ValueError, match=r"vocabulary of \d+, text and audio tokenizer make \d+; use the tokenizers"):
        load_stage_model(toy_run.settings(model_name_or_path=checkpoint), other)


def test_a_text_model_with_too_few_rows_is_refused(load, toy_run, tmp_path):
    model = Qwen2ForCausalLM.from_pretrained(toy_run.text_model)
    model.resize_token_embeddings(700)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="736 text tokens, the model only 700"):
        load(model_name_or_path=str(tmp_path))


def test_missing_and_foreign_weights_are_refused(load, checkpoint, tmp_path):
    model = Qwen2MTPForCausalLM.from_pretrained(checkpoint)
    state = model.state_dict()
    for key, changed, message in (
        ("model.layers.1.mlp.up_proj.weight", "lost", "lacks model.layers.1.mlp.up_proj.weight"),
        ("model.layers.1.mlp.up_proj.weight", "extra", "unexpected: adapter.weight"),
    ):
        folder = tmp_path / changed
        weights = {name: value for name, value in state.items() if changed == "extra" or name != key}
        weights |= {"adapter.weight": torch.zeros(2)} if changed == "extra" else {}
        shutil.copytree(checkpoint, folder)
        model.save_pretrained(folder, state_dict=weights)
        with pytest.raises(ValueError, match=message):
            load(model_name_or_path=str(folder))


def test_other_model_types_are_refused(load, tmp_path):
    MistralConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type must be one of llama, llama_mtp, qwen2, .*, got mistral"):
        load(model_name_or_path=str(tmp_path))


def test_packs_longer_than_the_positions_are_refused(load):
    with pytest.raises(ValueError, match="--model_max_length 512 exceeds.*256"):
        load(model_max_length=512)


def test_a_frozen_language_model_needs_modules(load):
    with pytest.raises(ValueError, match="--language_model_freeze needs MTP modules"):
        load(language_model_freeze=True)


def test_a_named_attention_is_taken_as_it_is():
    assert resolve_attention("eager") == "eager"
    assert resolve_attention("auto") in ("sdpa", "flash_attention_2")


def test_a_model_remembers_its_audio_tokenizer(load, tmp_path, checkpoint):
    mine, other = ({"type": "glm4voice", "fingerprint": f"glm4voice-{name}"} for name in ("1", "2"))
    load(audio_tokenizer=mine).save_pretrained(tmp_path / "mine")
    model = load(audio_tokenizer=mine, model_name_or_path=str(tmp_path / "mine"))
    assert model.config.audio_tokenizer == mine
    with pytest.raises(ValueError, match="mine was trained on codes of .* glm4voice-1, got glm4voice-2"):
        load(audio_tokenizer=other, model_name_or_path=str(tmp_path / "mine"))
    assert load(audio_tokenizer=other, model_name_or_path=checkpoint).config.audio_tokenizer == other


def test_depth_weights_are_numbers_or_the_decay_of_vocalnet():
    assert depth_weights(["1", "0.5"], 2) == [1.0, 0.5]
    assert depth_weights(["vocalnet"], 3) == pytest.approx([0.8, 0.64, 0.512])
    with pytest.raises(ValueError, match="--mtp_depth_weights needs 3 numbers, one per MTP module, got 1 0.5"):
        depth_weights(["1", "0.5"], 3)

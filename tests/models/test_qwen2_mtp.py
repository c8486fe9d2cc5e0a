"""The model itself: forward pass, configuration, checkpoints."""

import json

import pytest
import torch
from toy_models import ASSETS, load_case, load_model, make_model
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from vita_audio.models import Qwen2MTPConfig, Qwen2MTPForCausalLM

CONFIGS = ASSETS.parent.parent.parent / "configs" / "models"
PACKED_POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
BORDERS = [[0, 5, 8, 9, 12], [0, 1, 12]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_forward_matches_the_reference(attention):
    golden = load_case("forward_mtp3")
    model = load_model(golden.folder, attention).eval()
    with torch.no_grad():
        output = model(**golden.inputs)
        hidden = model.model(**golden.inputs).last_hidden_state
        embeds = model.model.embed_tokens(golden.inputs["input_ids"])
        depths = list(model.mtp_chain(embeds, hidden, golden.inputs["position_ids"]))
    tolerance = golden.case["tolerance"]
    torch.testing.assert_close(hidden, golden.tensors["main.hidden_after_norm"], **tolerance["hidden_states"])
    torch.testing.assert_close(output.logits, golden.tensors["main.logits"], **tolerance["logits"])
    assert len(depths) == 3
    for depth, states in enumerate(depths):
        states = states[:, : -depth - 1]  # the last places have no token to pair with
        expected = golden.tensors[f"mtp{depth}.hidden_after_norm"]
        torch.testing.assert_close(states, expected, **tolerance["hidden_states"])
        logits = golden.tensors[f"mtp{depth}.logits"]
        torch.testing.assert_close(model.lm_head(states), logits, **tolerance["logits"])


@pytest.fixture(params=[{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}])
def stock_and_ours(request):
    """A stock Qwen2 and ours without modules, with the same weights."""
    model = make_model(0, **request.param)
    fields = {key: value for key, value in model.config.to_dict().items() if key in Qwen2Config().to_dict()}
    stock = Qwen2ForCausalLM(Qwen2Config(**{**fields, "model_type": "qwen2"})).eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    return stock, model


def test_without_modules_equals_stock_qwen2(stock_and_ours, ids):
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    calls = [
        {"labels": ids},
        {"labels": ids, "num_items_in_batch": 7},
        {"attention_mask": mask, "output_hidden_states": True, "logits_to_keep": 2},
    ]
    for arguments in calls:
        stock, ours = (model(input_ids=ids, **arguments) for model in stock_and_ours)
        for name in stock:
            if name != "past_key_values":
                torch.testing.assert_close(ours[name], stock[name], msg=name)
    stock, ours = (model(input_ids=ids[:, :1], use_cache=True).past_key_values for model in stock_and_ours)
    torch.testing.assert_close(ours.layers[0].keys, stock.layers[0].keys)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}, {"max_length": 15}])
def test_without_modules_generates_like_stock_qwen2(stock_and_ours, ids, arguments):
    limits = {} if "max_length" in arguments else {"max_new_tokens": 6}
    stock, ours = (model.generate(ids, do_sample=False, **limits, **arguments) for model in stock_and_ours)
    assert ours.tolist() == stock.tolist()


def test_gradients_without_modules_equal_stock_qwen2(stock_and_ours, ids):
    for model in stock_and_ours:
        model.train()(input_ids=ids, labels=ids).loss.backward()
    stock, ours = ({name: p.grad for name, p in model.named_parameters()} for model in stock_and_ours)
    for name, gradient in stock.items():
        torch.testing.assert_close(ours[name], gradient)


def test_backbone_search_modes_work_beside_modules(ids):
    """Beam search never touches the layers of the modules, whose cache stays empty."""
    model = make_model(2)
    output = model.generate(ids, num_beams=2, do_sample=False, max_new_tokens=4, return_dict_in_generate=True)
    assert output.sequences.shape == (2, 16)
    assert [layer.get_seq_length() for layer in output.past_key_values.layers] == [15, 15, 0, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [None, True, False])
def test_packed_documents_equal_separate_ones(ids, attention, use_cache):
    """Also with the default use_cache, where stock transformers lets documents see each other."""
    model = make_model(2, attention=attention)
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=PACKED_POSITIONS, use_cache=use_cache).logits
        for row, borders in enumerate(BORDERS):
            for start, end in zip(borders, borders[1:], strict=False):
                alone = model(input_ids=ids[row : row + 1, start:end]).logits
                torch.testing.assert_close(packed[row : row + 1, start:end], alone)


def test_packed_documents_equal_separate_ones_at_every_depth(ids):
    model = make_model(3)
    embeds = model.model.embed_tokens(ids)
    with torch.no_grad():
        hidden = model.model(input_ids=ids, position_ids=PACKED_POSITIONS).last_hidden_state
        for depth, packed in enumerate(model.mtp_chain(embeds, hidden, PACKED_POSITIONS)):
            for row, borders in enumerate(BORDERS):
                for start, end in zip(borders, borders[1:], strict=False):
                    part = slice(row, row + 1), slice(start, end)
                    positions = PACKED_POSITIONS[part]
                    alone = list(model.mtp_chain(embeds[part], hidden[part], positions))[depth]
                    places = max(0, end - start - depth - 1)
                    torch.testing.assert_close(packed[part][:, :places], alone[:, :places])


def test_packed_rows_with_a_padding_mask_are_refused(ids):
    model = make_model(1)
    with pytest.raises(ValueError, match="attention_mask=None"):
        model(input_ids=ids, position_ids=PACKED_POSITIONS, attention_mask=torch.ones_like(ids))
    with_gap = torch.ones_like(ids)
    with_gap[0, 4] = with_gap[0, 7:9] = with_gap[1, 0] = 0  # padding at the ends of documents
    with pytest.raises(ValueError, match="attention_mask=None"):
        model(input_ids=ids, position_ids=PACKED_POSITIONS, attention_mask=with_gap)


def test_a_left_padded_batch_is_not_taken_for_packed_rows(ids):
    """Its positions repeat in the padding; a forward pass gives a cache, from which a loop of one's own goes on."""
    model = make_model(1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
    begin = model(input_ids=ids[:, :8], position_ids=positions[:, :8], attention_mask=mask[:, :8], use_cache=True)
    assert begin.past_key_values.get_seq_length() == 8
    end = model(
        input_ids=ids[:, 8:], position_ids=positions[:, 8:], attention_mask=mask, past_key_values=begin.past_key_values
    )
    torch.testing.assert_close(end.logits, whole[:, 8:], atol=1e-5, rtol=1e-5)


def test_exactly_one_kind_of_input():
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        make_model(1)()


@pytest.mark.parametrize("modules", [1, 10])
def test_full_size_keys_and_parameters(modules):
    expected = json.loads((ASSETS / f"keys_7B_mtp{modules}.json").read_text())
    counts = json.loads((ASSETS / "params_7B.json").read_text())["counts"][f"mtp{modules}"]
    config = AutoConfig.from_pretrained(CONFIGS / f"qwen2_7b_mtp{modules}.json")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected["keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == counts["total"]
    assert config.num_backbone_layers == counts["backbone_layers"]


@pytest.mark.parametrize("name", ["tiny", "qwen2_7b", "tiny_sensevoice", "qwen2_7b_sensevoice"])
def test_stages_of_a_config_differ_in_modules_only(name):
    configs = {n: json.loads((CONFIGS / f"{name}_mtp{n}.json").read_text()) for n in (0, 1, 10)}
    for modules, config in configs.items():
        assert config.pop("num_nextn_predict_layers") == modules
        assert config.pop("num_hidden_layers") == (4 if name.startswith("tiny") else 28) + modules
        config.pop("vocab_size")
    assert configs[0] == configs[1] == configs[10]


def test_tiny_config_trains_as_it_is():
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(CONFIGS / "tiny_mtp10.json")).train()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_config_rejects_more_modules_than_layers():
    with pytest.raises(ValueError, match="num_nextn_predict_layers must be between 0 and 3, got 4"):
        Qwen2MTPConfig(num_hidden_layers=4, num_nextn_predict_layers=4)


@pytest.mark.parametrize("tied", [False, True])
def test_checkpoint_round_trip(tmp_path, ids, tied):
    model = make_model(2, tie_word_embeddings=tied, mtp_loss_weight=0.3)
    model.generation_config.mtp_inference_mode = [1, 2]
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, Qwen2MTPConfig)
    assert (config.num_nextn_predict_layers, config.mtp_loss_weight) == (2, 0.3)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, Qwen2MTPForCausalLM)
    assert not any(info.values()), info
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.generate(ids, max_new_tokens=8).tolist() == model.generate(ids, max_new_tokens=8).tolist()


def test_vocabulary_can_grow(ids):
    model = make_model(2, tie_word_embeddings=True).train()
    model.resize_token_embeddings(120)
    output = model(input_ids=ids + 19, labels=ids + 19)
    output.loss.backward()
    assert model.config.vocab_size == model.lm_head.out_features == 120
    assert model.lm_head.weight.grad.shape == (120, 32)

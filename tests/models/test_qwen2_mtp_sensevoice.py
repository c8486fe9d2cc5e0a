"""The Plus model: reference numbers, order and places of audio, what trains, checkpoints."""

import json

import pytest
import torch
from test_mtp_loss import check_gradients, check_losses, single_process_group
from torch.nn.parallel import DistributedDataParallel
from toy_models import ASSETS, load_case, make_plus_model, random_audios
from transformers import AutoConfig, AutoModelForCausalLM

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models import Qwen2MTPSenseVoiceConfig, Qwen2MTPSenseVoiceForCausalLM
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable

ENCODER_SIZES = ("output_size", "attention_heads", "linear_units", "num_blocks", "tp_blocks", "kernel_size")
HIDDEN = {"atol": 2e-4, "rtol": 2e-4}


def load_plus(name, attention="sdpa"):
    """Load a golden case with its model and what it hears; the reference keeps the encoder's sizes elsewhere."""
    golden = load_case(name)
    sizes = golden.case["encoder_config"]
    audio_config = {size: sizes[size] for size in ENCODER_SIZES} | {"vocab_size": sizes["ctc_vocab_size"]}
    config = AutoConfig.from_pretrained(golden.folder, audio_config=audio_config)
    model, report = AutoModelForCausalLM.from_pretrained(
        golden.folder, config=config, attn_implementation=attention, output_loading_info=True
    )
    assert isinstance(model, Qwen2MTPSenseVoiceForCausalLM) and not any(report.values())
    return golden, model.eval(), heard(golden)


def heard(golden):
    return {
        "audios": [golden.inputs[f"audio{number}"] for number in range(2)],
        "audio_indices": [golden.inputs[f"audio_indices{number}"] for number in range(2)],
    }


def text_of(golden):
    return {name: golden.inputs[name] for name in ("input_ids", "labels", "position_ids")}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_forward_matches_the_reference(attention):
    golden, model, audio = load_plus("plus_mtp2", attention)
    ids, positions = golden.inputs["input_ids"], golden.inputs["position_ids"]
    with torch.no_grad():
        encoded = model.model.audio_model.model(audio["audios"])
        projected = model.model.encode_audio(audio["audios"])
        token_embeds = model.model.embed_tokens(ids)
        inputs_embeds = model.model.insert_audio(token_embeds, **audio)
        hidden = model.model(ids, position_ids=positions, **audio).last_hidden_state
        depths = list(model.mtp_chain(token_embeds, hidden, positions))
        logits = model(ids, position_ids=positions, **audio).logits
    expected, tolerance = golden.tensors, golden.case["tolerance"]
    for number in range(2):
        torch.testing.assert_close(encoded[number], expected[f"audio{number}.encoder_out"], **HIDDEN)
        torch.testing.assert_close(projected[number], expected[f"audio{number}.projected"], **HIDDEN)
    torch.testing.assert_close(inputs_embeds, expected["inputs_embeds"], **HIDDEN)
    torch.testing.assert_close(hidden, expected["main.hidden_after_norm"], **HIDDEN)
    torch.testing.assert_close(logits, expected["main.logits"], **tolerance["logits"])
    assert len(depths) == 2
    for depth, states in enumerate(depths):
        states = states[:, : -depth - 1]
        torch.testing.assert_close(states, expected[f"mtp{depth}.hidden_after_norm"], **HIDDEN)
        torch.testing.assert_close(model.lm_head(states), expected[f"mtp{depth}.logits"], **tolerance["logits"])


@pytest.mark.parametrize("attention, use_cache", [("sdpa", True), ("sdpa", False), ("eager", True)])
def test_tokens_match_the_reference(attention, use_cache):
    golden, model, audio = load_plus("plus_mtp2", attention)
    prompt = golden.inputs["prompt_ids"]
    for run in golden.expected["generate"]:
        output = model.generate(
            prompt,
            **audio,
            mtp_inference_mode=run["mode"],
            max_new_tokens=run["max_new_tokens"],
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
        )
        assert output.sequences[0].tolist() == prompt[0].tolist() + run["output_ids"], run["mode"]
        steps = getattr(output, "steps", (0,) * len(run["sources"]))  # transformers' own where no module takes part
        assert [f"mtp{depth - 1}" if depth else "main" for depth in steps] == run["sources"]
    expected = next(run for run in golden.expected["generate"] if run["mode"][1] == 0)
    plain = model.generate(prompt, **audio, max_new_tokens=40, do_sample=False, use_cache=use_cache)
    assert plain[0, prompt.shape[1] :].tolist() == expected["output_ids"]


def freeze(model, state):
    return set_trainable(model, mtp_parameter_patterns(model.config) if state == "frozen" else ["*"])


def divisor(text):
    return None if text == "mean" else int(text.removeprefix("num_items_in_batch="))


@pytest.mark.parametrize("variant", load_case("plus_mtp2").expected["train"])
def test_losses_and_gradients_match_the_reference(variant):
    """Also without audio, where the audio parameters of the reference have zero gradients."""
    golden, model, audio = load_plus("plus_mtp2")
    what, state, reduction = variant.split("|")
    freeze(model.train(), state)
    output = model(**text_of(golden), **audio if what == "audio" else {}, num_items_in_batch=divisor(reduction))
    output.loss.backward()
    expected = golden.expected["train"][variant]
    check_losses(output, expected, golden.case["tolerance"])
    check_gradients(model, expected["grad_norms"], golden.case["tolerance"])


@pytest.mark.parametrize("variant", load_case("plus_packed_mtp2").expected["variants"])
def test_packed_documents_match_the_reference_without_border_targets(variant):
    """Differs from the reference on purpose: it scores the first token of the next document."""
    golden, model, audio = load_plus("plus_packed_mtp2")
    state, reduction = variant.split("|")
    freeze(model.train(), state)
    output = model(**text_of(golden), **audio, num_items_in_batch=divisor(reduction))
    expected = golden.expected["variants"][variant]["boundary_positions_ignored"]
    check_losses(output, expected, golden.case["tolerance"])
    assert output.num_targets.tolist() == expected["n_valid_targets"]


def test_packed_documents_equal_separate_ones():
    golden, model, audio = load_plus("plus_packed_mtp2")
    text = text_of(golden)
    with torch.no_grad():
        packed = model(**text, **audio).logits
        starts = (text["position_ids"][0] == 0).nonzero().flatten().tolist() + [text["input_ids"].shape[1]]
        assert len(starts) == 4
        for start, stop in zip(starts, starts[1:], strict=False):
            inside = [n for n, places in enumerate(audio["audio_indices"]) if start <= places[1, 0, 0] < stop]
            alone = {
                "audios": [audio["audios"][n] for n in inside],
                "audio_indices": [audio["audio_indices"][n] - torch.tensor([0, start])[:, None, None] for n in inside],
            }
            logits = model(input_ids=text["input_ids"][:, start:stop], **alone).logits
            torch.testing.assert_close(packed[:, start:stop], logits)


@pytest.fixture(scope="module")
def model():
    return make_plus_model(2)


def places(row, start, length):
    return torch.stack([torch.full((1, length), row), torch.arange(start, start + length)[None]])


def test_every_audio_goes_to_its_own_places(model, ids):
    """Whatever the order in which audios are listed, and in which row of a batch they are."""
    long, short = random_audios(3, 1)
    here = {"audios": [long, short], "audio_indices": [places(1, 0, 7), places(0, 5, 5)]}
    both = model(ids, **here).logits
    swapped = model(ids, audios=[short, long], audio_indices=here["audio_indices"][::-1]).logits
    torch.testing.assert_close(swapped, both)
    torch.testing.assert_close(model(ids[:1], audios=[short], audio_indices=[places(0, 5, 5)]).logits, both[:1])
    torch.testing.assert_close(model(ids[1:], audios=[long], audio_indices=[places(0, 0, 7)]).logits, both[1:])
    assert not torch.allclose(model(ids).logits, both)


def test_padded_batches_generate_like_single_prompts(model, ids):
    long, short = random_audios(3, 1)
    padded = ids.clone()
    padded[1] = torch.cat([ids[1, :1].expand(4), ids[1, :8]])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "mtp_inference_mode": [1, 2]}
    indices = [places(0, 2, 7), places(1, 4 + 3, 5)]
    batch = model.generate(padded, attention_mask=mask, audios=[long, short], audio_indices=indices, **options)
    first = model.generate(ids[:1], audios=[long], audio_indices=[places(0, 2, 7)], **options)
    second = model.generate(ids[1:, :8], audios=[short], audio_indices=[places(0, 3, 5)], **options)
    assert batch[:, 12:].tolist() == [first[0, 12:].tolist(), second[0, 8:].tolist()]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"audios": random_audios(3), "audio_indices": [places(0, 0, 6)]}, r"must have \[7\] places .* got \[6\]"),
        ({"audios": random_audios(3), "audio_indices": None}, r"must have \[7\] places .* got \[\]"),
        ({"audios": [], "audio_indices": [places(0, 0, 6)]}, "1 audio_indices were given without audios"),
    ],
)
def test_audio_that_does_not_fill_its_places_is_an_error(model, ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(ids, **arguments)
    with pytest.raises(ValueError, match=message):
        model.generate(ids, **arguments, max_new_tokens=2)


def test_an_encoder_that_is_kept_on_disk_hears_alike(model, ids, tmp_path):
    """As `device_map="auto"` does where memory is short."""
    arguments = {"audios": random_audios(3), "audio_indices": [places(0, 2, 7)]}
    model.save_pretrained(tmp_path)
    names = [f"model.{name}" for name, _ in model.model.named_children()]
    names += [name for name, _ in model.named_children() if name != "model"]
    device_map = dict.fromkeys(names, "cpu") | {"model.audio_model": "disk"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    assert loaded.model.audio_model.model.embed.weight.is_meta
    torch.testing.assert_close(loaded(ids, **arguments).logits, model(ids, **arguments).logits)


def test_generate_takes_audio_with_ids_only(model, ids):
    embeds = model.model.embed_tokens(ids)
    with pytest.raises(ValueError, match="give input_ids, not inputs_embeds"):
        model.generate(inputs_embeds=embeds, audios=random_audios(1), audio_indices=[places(0, 0, 5)])


def test_a_frozen_encoder_keeps_no_graph_and_does_not_change(ids):
    model = make_plus_model(2).train()
    set_trainable(model, ["*"], frozen=["model.audio_model.*"])
    before = {name: tensor.clone() for name, tensor in model.model.audio_model.state_dict().items()}
    encoded = []
    model.model.audio_model.model.register_forward_hook(lambda *call: encoded.extend(call[2]))
    output = model(ids, labels=ids, audios=random_audios(3), audio_indices=[places(0, 2, 7)])
    output.loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert not encoded[0].requires_grad
    after = model.model.audio_model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model.model.audio_projection.mlp[0].weight.grad.any()


def test_documents_without_targets_or_audio_train_without_harm(ids):
    model = make_plus_model(2).train()
    output = model(ids, labels=torch.full_like(ids, IGNORE_INDEX))
    output.loss.backward()
    assert output.loss.item() == 0.0
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(name.startswith("model.audio_model.model.ctc.") for name in unused)


@pytest.mark.parametrize("frozen", ["model.audio_model.*", "model.audio_model.model.ctc.*"])
def test_distributed_training_leaves_no_parameter_unused(tmp_path, ids, frozen):
    """Also in steps without audio. An unused parameter makes the next step raise."""
    model = make_plus_model(2).train()
    set_trainable(model, ["*"], frozen=[frozen])
    with single_process_group(tmp_path):
        wrapped = DistributedDataParallel(model)
        for audio in ({"audios": random_audios(3), "audio_indices": [places(1, 2, 7)]}, {}, {"audios": []}, {}):
            wrapped(input_ids=ids, labels=ids, **audio).loss.backward()
        del wrapped  # while the process group exists: freeing the group with it can deadlock with gloo's thread
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_autocast_stays_close_to_full_precision(ids):
    model = make_plus_model(2).train()
    audio = {"audios": random_audios(3), "audio_indices": [places(0, 2, 7)]}
    expected = model(ids, labels=ids, **audio).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids, **audio).loss
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("num_modules", [0, 1, 10])
def test_keys_and_parameter_counts_at_7b(num_modules):
    def read(name):
        return json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))

    expected = read(f"keys_7B_plus_mtp{num_modules}")["keys"]
    configs = ASSETS.parent.parent.parent / "configs" / "models"
    config = AutoConfig.from_pretrained(configs / f"qwen2_7b_sensevoice_mtp{num_modules}.json")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = model.state_dict()
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == expected
    count = read("params_7B")["counts"][f"plus_mtp{num_modules}"]["total"]
    assert sum(tensor.numel() for tensor in weights.values()) == count


def test_checkpoint_round_trip(tmp_path, model, ids):
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, Qwen2MTPSenseVoiceForCausalLM) and not any(report.values())
    assert loaded.config.sensevoice == model.config.sensevoice
    audio = {"audios": random_audios(3), "audio_indices": [places(0, 2, 7)]}
    torch.testing.assert_close(loaded.eval()(ids, **audio).logits, model(ids, **audio).logits)


def test_config_rejects_unknown_and_impossible_sizes():
    with pytest.raises(ValueError, match="audio_config must hold sizes of SenseVoiceConfig, got {'width': 3}"):
        Qwen2MTPSenseVoiceConfig(audio_config={"width": 3})
    with pytest.raises(ValueError, match="odd kernel_size"):
        Qwen2MTPSenseVoiceConfig(audio_config={"kernel_size": 4})

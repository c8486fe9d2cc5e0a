"""Several adapters on one base in memory: answers are those of models that are loaded one at a time."""

import json
import shutil

import pytest
import torch
from toy_adapters import save_toy_adapter
from toy_conversations import CONVERSATIONS, codes_of, text_of
from toy_speech_lm import load_toy, make_toy_folders

from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.prompts import ChatState
from vita_audio.inference.tasks import make_conversation
from vita_audio.training.lora import LoraSettings

LENGTH = 24


@pytest.fixture(scope="module")
def folders(toy_folders, tmp_path_factory):
    """The base, and two adapters on it of different kinds."""
    folder, lora = tmp_path_factory.mktemp("adapters"), LoraSettings(r=2, dora=True, save=("norm", "lm_head"))
    one = save_toy_adapter(toy_folders, folder / "one")
    return {
        "base": toy_folders.model,
        "one": one,
        "two": save_toy_adapter(toy_folders, folder / "two", lora=lora, seed=2),
    }


@pytest.fixture(scope="module")
def models(toy_folders, folders):
    base = load_toy(toy_folders)
    return {"base": base, **{name: base.with_adapter(folders[name]) for name in ("one", "two")}}


@pytest.mark.parametrize("plan", ["vanilla", "boost"])
def test_answers_equal_those_of_models_loaded_alone(models, folders, plan):
    answers = {}
    for name, model in models.items():
        alone = SpeechLM.from_pretrained(folders[name], model.audio_tokenizer, "cpu")
        options = {"max_new_tokens": LENGTH, "decode_audio": False}
        expected = alone.respond_batch(CONVERSATIONS, plan, **options)
        answers[name] = [answer.ids for answer in model.respond_batch(CONVERSATIONS, plan, **options)]
        assert answers[name] == [answer.ids for answer in expected]
    assert answers["base"] != answers["one"] != answers["two"] != answers["base"]


@pytest.mark.parametrize("options", [{}, {"acceptance": 1}], ids=["committed", "verified"])
def test_interleaved_streams_equal_separate_ones(models, options):
    (conversation, *_), options = CONVERSATIONS, {"max_new_tokens": LENGTH, "decode_audio": False, **options}
    streams = {name: model.stream(conversation, "boost", **options) for name, model in models.items()}
    chunks, open_streams = {name: [] for name in models}, dict(streams)
    while open_streams:
        for name, stream in list(open_streams.items()):
            chunk = next(stream, None)
            if chunk is None:
                del open_streams[name]
            else:
                chunks[name].append(chunk)
    for name, model in models.items():
        expected = model.respond(conversation, "boost", **options)
        assert (text_of(chunks[name]), codes_of(chunks[name])) == (expected.text, expected.codes)


def test_a_conversation_that_changes_its_model_is_read_again(models):
    state, conversation = ChatState(), make_conversation("text", text="what is the day")
    for name in ("one", "two", "two", "base", "one"):
        expected = models[name].respond(conversation, max_new_tokens=LENGTH, decode_audio=False)
        answer = models[name].respond(conversation, max_new_tokens=LENGTH, decode_audio=False, state=state)
        assert answer.ids == expected.ids
        conversation["messages"] += [answer.message, {"role": "user", "content": "and then"}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_weights_are_held_once_and_in_the_dtype_of_the_base(folders, models, dtype):
    base = SpeechLM.from_pretrained(folders["base"], models["base"].audio_tokenizer, "cpu", dtype)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    held = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    for name in ("one", "two"):
        model = base.with_adapter(folders[name])
        layers = model.model.model.layers.named_parameters()
        assert all(value.untyped_storage().data_ptr() in held for key, value in layers if "lora_" not in key)
        assert {parameter.dtype for parameter in model.model.parameters()} == {dtype}
        answer = model.respond(CONVERSATIONS[0], "boost", max_new_tokens=LENGTH, decode_audio=False)
        assert answer.ids
    after = base.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_the_generation_config_is_the_adapters_or_the_bases(models, folders, tmp_path):
    defaults = models["base"].model.generation_config
    assert models["one"].model.generation_config.mtp_inference_mode == defaults.mtp_inference_mode
    shutil.copytree(folders["one"], tmp_path / "bare")
    (tmp_path / "bare" / "generation_config.json").unlink()
    bare = models["base"].with_adapter(tmp_path / "bare").model.generation_config
    assert bare.to_dict() == defaults.to_dict() and bare is not defaults


def test_an_adapter_of_another_base_is_refused(models, folders, tmp_path):
    other = make_toy_folders(tmp_path / "other", num_modules=2)
    other_lm = load_toy(other)
    with pytest.raises(ValueError, match="one is an adapter of another base: it was trained on .* got .*other"):
        other_lm.with_adapter(folders["one"])
    with pytest.raises(ValueError, match="holds no adapter: adapter_config.json is missing"):
        models["base"].with_adapter(folders["base"])


def test_an_adapter_whose_configuration_does_not_fit_the_base_is_named(models, folders, tmp_path):
    folder = shutil.copytree(folders["one"], tmp_path / "wider")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))
    named = f"the weights of {folders['base']} do not fit the config.json of the adapter {folder}: of another shape"
    with pytest.raises(ValueError, match=named):
        models["base"].with_adapter(folder)


def test_an_adapter_may_be_the_base_of_others(toy_folders, folders, models):
    """A merged adapter is a base like any other, and knows that it is not the one it was made from."""
    merged = SpeechLM.from_pretrained(folders["one"], models["base"].audio_tokenizer, "cpu")
    with pytest.raises(ValueError, match="two is an adapter of another base"):
        merged.with_adapter(folders["two"])

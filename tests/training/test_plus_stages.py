"""Stages with continuous speech input: what they start from, what trains, what they leave, and wrong arguments."""

import re
import shutil

import pytest
import soundfile
import torch
from audio_tokenizers.tiny_folders import NUM_CODES
from safetensors.torch import load_file, save_file
from toy_run import TINY_TOKENIZER, logged
from transformers import AutoModelForCausalLM

from tools.finetune_sts import main as train
from vita_audio.data.codes import AudioCodeStore
from vita_audio.models import Qwen2MTPSenseVoiceForCausalLM
from vita_audio.models.sensevoice import read_weights
from vita_audio.models.surgery import load_speech_encoder
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.text import CONTINUOUS_INPUT, TextTokenizer
from vita_audio.training.stage_model import load_stage_model

ENCODER, PROJECTION = "model.audio_model.model.", "model.audio_projection."


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return tmp_path_factory.mktemp("plus_codes")


@pytest.fixture(scope="module")
def plus_flags(toy_run, codes):
    """Flags of a Plus run, with a code store of its own."""

    def flags(output_dir, num_modules, **changes):
        plus = {
            "audio_tokenizer_type": "sensevoice_glm4voice",
            "audio_code_dir": codes,
            "config_name": toy_run.config(num_modules, plus=True),
            "audio_model_freeze": True,
            "max_steps": 2,
        }
        return toy_run.flags(output_dir, **plus | changes)

    return flags


@pytest.fixture(scope="module")
def stages(toy_run, plus_flags, tmp_path_factory):
    """The four stages, one after the other."""
    folder = tmp_path_factory.mktemp("plus_stages")
    changes = [
        {"num_modules": 0, "extract_codes": True, "audio_model_name_or_path": toy_run.speech_encoder},
        {"num_modules": 1, "language_model_freeze": True},
        {"num_modules": 3, "language_model_freeze": True},
        {"num_modules": 3, "mtp_model_lr_mult": 10},
    ]
    start = toy_run.text_model
    for number, change in enumerate(changes, start=1):
        train(plus_flags(folder / str(number), model_name_or_path=start, **change))
        start = folder / str(number)
    return [folder / str(number) for number in range(1, 5)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_each_stage_leaves_a_model_that_hears(stages):
    for folder, num_modules in zip(stages, (0, 1, 3, 3), strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert isinstance(model, Qwen2MTPSenseVoiceForCausalLM)
        assert model.config.num_nextn_predict_layers == num_modules
        assert SenseVoiceFrontEnd.from_pretrained(folder).shift.eq(-8).all()
        assert TextTokenizer.from_pretrained(folder).audio_input == CONTINUOUS_INPUT


def test_the_encoder_stays_as_it_was_and_the_rest_trains_in_its_stages(stages, toy_run):
    first, second, third, fourth = map(weights, stages)
    for name, value in read_weights(toy_run.speech_encoder).items():
        for stage in (first, second, third, fourth):
            assert torch.equal(stage[ENCODER + name], value), name
    for name, value in first.items():
        if not name.startswith(ENCODER):
            assert torch.equal(second[name], value) and torch.equal(third[name], value), name
            assert not torch.equal(fourth[name], value), name
    assert any(name.startswith(PROJECTION) for name in first)


def test_only_answers_have_codes(stages, codes):
    """Eight of the twelve spoken samples of the corpus are spoken answers."""
    (database,) = codes.glob("*.sqlite")
    assert len(AudioCodeStore(codes, database.stem)) == 8


def test_a_stage_hears_what_is_said(stages, plus_flags, toy_run, tmp_path):
    """The same run on other speech of the same length has another loss."""
    shutil.copytree(toy_run.folder / "audio", tmp_path / "audio")
    shutil.copy(toy_run.folder / "data.jsonl", tmp_path)
    start = {"model_name_or_path": stages[0], "num_modules": 1, "max_steps": 1, "language_model_freeze": True}
    start |= {"dataset_name": shutil.copy(toy_run.data, tmp_path)}
    train(plus_flags(tmp_path / "same", **start))
    assert logged(tmp_path / "same") == pytest.approx(logged(stages[1])[:1])
    for number in (2, 6, 10, 14):  # what users say
        path = tmp_path / "audio" / f"{number}.wav"
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[::-1], rate)
    train(plus_flags(tmp_path / "other", **start))
    assert logged(tmp_path / "other") != pytest.approx(logged(tmp_path / "same"), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_model_name_or_path": None}, "normalisation am.mvn is not in .*text_model; give the folder of a Sense"),
        ({"config_name": "plain"}, "user is continuous input, but the model .qwen2_mtp. has no speech encoder; set"),
        ({"audio_tokenizer_type": "glm4voice"}, "has a speech encoder, but no role has continuous input; set"),
        ({"audio_input": "user"}, "audio input must be pairs such as user=continuous, got 'user'"),
        ({"audio_input": "user=loud"}, "must say discrete, continuous or both for system, user, assistant, got"),
        ({"audio_input": "assistant=both"}, "audio of the assistant must be discrete"),
    ],
)
def test_what_does_not_go_together_is_one_line(toy_run, plus_flags, tmp_path, changes, message, capsys):
    values = {"audio_model_name_or_path": toy_run.speech_encoder, "extract_codes": True} | changes
    if values.get("config_name") == "plain":
        values["config_name"] = toy_run.config(0)
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(SystemExit):
        train(plus_flags(tmp_path / "run", 0, **values))
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


@pytest.fixture
def load(toy_run):
    tokenizer = TextTokenizer.from_pretrained(TINY_TOKENIZER, NUM_CODES, continuous_input=True)

    def load_model(**changes):
        values = {
            "config_name": str(toy_run.config(1, plus=True)),
            "audio_model_name_or_path": str(toy_run.speech_encoder),
        }
        return load_stage_model(toy_run.settings(**values | changes), tokenizer)

    return load_model


def trained(model, prefix):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad and prefix in name}


def test_what_of_the_speech_input_trains(load):
    free, frozen = load(), load(audio_model_freeze=True)
    everything = {name for name, _ in free.named_parameters()}
    unused = {name for name in everything if name.startswith(f"{ENCODER}ctc.")}
    assert len(unused) == 2 and trained(free, "") == everything - unused
    assert trained(frozen, "") == {name for name in everything if not name.startswith(ENCODER)}
    assert trained(frozen, PROJECTION)
    both = load(audio_model_freeze=True, language_model_freeze=True)
    assert trained(both, "") == {name for name in trained(free, "") if name.startswith(("mtp_", "model.layers.2."))}


def test_a_new_projection_is_drawn_like_every_new_layer(load):
    projection = load().model.audio_projection
    assert projection.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert projection.pre_proj_layernorm.weight.eq(1).all() and not projection.pre_proj_layernorm.bias.any()


def test_random_weights_still_take_the_encoder_from_its_folder(load, toy_run):
    model = load(model_name_or_path=None)
    for name, value in read_weights(toy_run.speech_encoder).items():
        assert torch.equal(model.get_parameter(ENCODER + name), value)


def test_an_encoder_that_is_nowhere_or_does_not_fit_is_refused(load, toy_run, tmp_path):
    with pytest.raises(ValueError, match=r"lacks the speech encoder .* give --audio_model_name_or_path"):
        load(audio_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"does not fit the model config: .*\(\d+ tensors in all\); see audio_config"):
        load(config_name=str(toy_run.config(0, plus=True, audio_config={"output_size": 16})))
    model = load()
    save_file({"encoder.other": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit the model config"):
        load_speech_encoder(model, tmp_path)


def test_another_encoder_than_that_of_the_checkpoint_is_refused(load, toy_run, tmp_path):
    load().save_pretrained(tmp_path)
    other = toy_run.config(1, plus=True, audio_config={"num_blocks": 3})
    with pytest.raises(
        ValueError,
        match="speech encoder is SenseVoice.* in the checkpoint, SenseVoice.* in the config",
    ):
        load(model_name_or_path=str(tmp_path), config_name=str(other))


def test_encoder_arguments_need_an_encoder(load, toy_run):
    tokenizer = TextTokenizer.from_pretrained(TINY_TOKENIZER, NUM_CODES)
    with pytest.raises(ValueError, match="--audio_model_freeze and --audio_model_name_or_path need a model with"):
        load_stage_model(toy_run.settings(audio_model_freeze=True), tokenizer)

"""Exported folders: what the public code expects of them, and that ours read them too."""

import json

import pytest
import torch
from files.broken_folders import make_pointer
from safetensors.torch import load_file
from toy_speech_lm import load_toy, make_toy_folders

from vita_audio.checkpoints.export import export_checkpoint, public_config, public_generation_config
from vita_audio.checkpoints.inspection import inspect_checkpoint
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.models import SPEECH_CONFIGS, Qwen2MTPConfig, Qwen2MTPSenseVoiceConfig, Qwen3MTPConfig
from vita_audio.models.loading import load_weights, read_config
from vita_audio.text import CONTINUOUS_INPUT


@pytest.fixture(scope="module")
def exported(toy_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_checkpoint(toy_folders.model, folder)
    return folder


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_configuration_has_the_older_form(exported):
    values = read(exported / "config.json")
    assert (values["rope_theta"], values["rope_scaling"], values["torch_dtype"]) == (10_000, None, "float32")
    assert (values["model_type"], values["num_nextn_predict_layers"]) == ("qwen2_mtp", 4)
    assert not values.keys() & {"rope_parameters", "layer_types", "dtype", "audio_tokenizer", "transformers_version"}
    assert values["auto_map"] == {
        "AutoConfig": "VITA-MLLM/VITA-Audio-Boost--configuration_qwen2.Qwen2MTPConfig",
        "AutoModelForCausalLM": "VITA-MLLM/VITA-Audio-Boost--modeling_qwen2.Qwen2MTPForCausalLM",
    }
    assert read(exported / "generation_config.json") == {
        "do_sample": False,
        "eos_token_id": [716, 714],
        "mtp_inference_mode": [1, 10, 4, 10],
        "pad_token_id": 714,
    }


def test_the_acceptance_of_decoding_is_kept(tmp_path):
    values = {"acceptance": 0.5, "mtp_inference_mode": [1, 10], "something_else": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert public_generation_config(tmp_path) == {"acceptance": 0.5, "mtp_inference_mode": [1, 10]}


def test_values_at_their_default_are_written_too():
    """Without modules, and without the number of them, the public class has one."""
    values = public_config(Qwen2MTPConfig(), from_hub=True)
    assert values["num_nextn_predict_layers"] == 0
    settings = Qwen2MTPConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, use_sliding_window=False)
    assert public_config(settings, from_hub=True)["rope_theta"] == 1_000_000
    plus = public_config(Qwen2MTPSenseVoiceConfig(), from_hub=False)
    assert plus["auto_map"]["AutoConfig"] == "configuration_qwen2.Qwen2MTPSenseVoiceConfig"


def test_what_the_public_classes_lack_is_refused():
    with pytest.raises(ValueError, match="only plain rotary positions can be exported"):
        public_config(
            Qwen2MTPConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), from_hub=True
        )
    with pytest.raises(ValueError, match="no speech encoder but SenseVoiceSmall, got {'tp_blocks': 1}"):
        public_config(Qwen2MTPSenseVoiceConfig(audio_config={"tp_blocks": 1}), from_hub=True)
    with pytest.raises(ValueError, match="models of type qwen2_mtp and qwen2_mtp_sensevoice, got qwen3_mtp"):
        public_config(Qwen3MTPConfig(), from_hub=True)


def test_the_tokenizer_lists_every_added_token(exported, toy_folders):
    values, tokenizer = read(exported / "tokenizer_config.json"), load_toy(toy_folders).tokenizer
    assert {token["content"]: int(i) for i, token in values["added_tokens_decoder"].items()} == {
        token: i for token, i in tokenizer.base.get_added_vocab().items()
    }
    assert values["tokenizer_class"] == "Qwen2Tokenizer" and "<|audio_0|>" not in values["additional_special_tokens"]
    assert (values["eos_token"], values["pad_token"]) == ("<|im_end|>", "<|endoftext|>")


def test_ours_load_it_and_answer_the_same(exported, toy_folders):
    expected = load_toy(toy_folders)
    speech_lm = SpeechLM.from_pretrained(exported, expected.audio_tokenizer, "cpu")
    conversation = make_conversation("sts", audio=[4, 5], text="Say it", system="luke")
    assert speech_lm.prompt_ids(conversation) == expected.prompt_ids(conversation)
    options = {"max_new_tokens": 24, "decode_audio": False}
    assert speech_lm.respond(conversation, **options).ids == expected.respond(conversation, **options).ids


def test_the_coordinator_of_training_does_no_harm(toy_folders, tmp_path):
    """The exported configuration has none, so its vectors in the weights are ignored."""
    config = read_config(toy_folders.model, SPEECH_CONFIGS)
    config.mtp_coordinator_weight = 1.0
    model, missing = load_weights(toy_folders.model, config)
    assert missing == [f"mtp_coordinators.{module}.weight" for module in range(4)]
    model.save_pretrained(tmp_path / "trained")
    load_toy(toy_folders).tokenizer.save_pretrained(tmp_path / "trained")
    export_checkpoint(tmp_path / "trained", tmp_path / "out")
    assert missing[0] in load_file(tmp_path / "out" / "model.safetensors")
    assert not inspect_checkpoint(tmp_path / "out").problems
    again, missing = load_weights(tmp_path / "out", read_config(tmp_path / "out", SPEECH_CONFIGS))
    assert not missing and not again.mtp_coordinators


def test_shards_and_code_come_along(toy_folders, exported, tmp_path):
    model, _ = load_weights(exported, read_config(exported, SPEECH_CONFIGS), dtype=torch.bfloat16)
    model.config.audio_tokenizer = {"type": "glm4voice", "fingerprint": "glm4voice-1"}
    source, code = tmp_path / "source", tmp_path / "code"
    model.save_pretrained(source, max_shard_size="60KB")
    load_toy(toy_folders).tokenizer.save_pretrained(source)
    code.mkdir()
    with pytest.raises(FileNotFoundError, match="configuration_qwen2.py is missing; give the folder of the public"):
        export_checkpoint(source, tmp_path / "out", code)
    for name in ("configuration_qwen2.py", "modeling_qwen2.py", "helper.py", "__init__.py"):
        (code / name).write_text("# code\n")
    export_checkpoint(source, tmp_path / "out", code)
    values = read(tmp_path / "out" / "config.json")
    assert values["auto_map"]["AutoModelForCausalLM"] == "modeling_qwen2.Qwen2MTPForCausalLM"
    assert values["audio_tokenizer"]["fingerprint"] == "glm4voice-1" and values["torch_dtype"] == "bfloat16"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.py")) == [
        "configuration_qwen2.py",
        "helper.py",
        "modeling_qwen2.py",
    ]
    again, missing = load_weights(tmp_path / "out", read_config(tmp_path / "out", SPEECH_CONFIGS))
    weights = load_file(toy_folders.model / "model.safetensors")
    assert not missing and set(again.state_dict()) == set(weights)
    with pytest.raises(FileExistsError, match="out is in use; give a new folder"):
        export_checkpoint(source, tmp_path / "out", code)


def test_a_plus_model_takes_along_what_the_public_class_reads_of_its_encoder(tmp_path):
    """Weights are not looked into, so those of a tiny encoder stand for the only one that the public code has."""
    plus = make_toy_folders(tmp_path, audio_input=CONTINUOUS_INPUT).model
    config = {name: value for name, value in read(plus / "config.json").items() if name != "audio_config"}
    (plus / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="model/config.yaml is missing, which the public class .* SenseVoiceSm"):
        export_checkpoint(plus, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    encoder = tmp_path / "SenseVoiceSmall"
    encoder.mkdir()
    (plus / "am.mvn").rename(encoder / "am.mvn")
    for name in ("config.yaml", "configuration.json", "chn_jpn_yue_eng_ko_spectok.bpe.model", "model.pt", "README.md"):
        (encoder / name).write_text("{}")
    export_checkpoint(plus, tmp_path / "out", audio_model=encoder)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("am.mvn", "config.yaml", "configuration.json", "chn_jpn_yue_eng_ko_spectok.bpe.model"),
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    make_pointer(encoder / "chn_jpn_yue_eng_ko_spectok.bpe.model")
    with pytest.raises(ValueError, match="bpe.model is a Git LFS pointer"):
        export_checkpoint(plus, tmp_path / "again", audio_model=encoder)

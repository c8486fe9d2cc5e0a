"""The model for Kimi-Audio-Evalkit, in a package like the toolkit's, written from its README: "Adding Models"."""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_speech_lm import load_toy

from vita_audio.inference.tasks import asr_conversation, sts_conversation

ADAPTER = Path(__file__).parents[2] / "third_party" / "kimi_audio_evalkit" / "vita_audio_model.py"
BASE = '''
class BaseModel:
    """generate_inner(msg) returns the prompt and the result; unless overridden, audio over 60 s is discarded."""

    NAME = None

    def generate_inner(self, msg):
        raise NotImplementedError

    @staticmethod
    def check_audio_legal(audio_path, max_duration=60):
        import soundfile

        paths = [audio_path] if isinstance(audio_path, str) else audio_path
        return all(0.1 <= soundfile.info(path).duration <= max_duration for path in paths)

    def __call__(self, msg):
        if not self.check_audio_legal(msg["audio"]):
            return msg["text"], None
        return self.generate_inner(msg)
'''
PACKAGE = """
import importlib, inspect, pkgutil

from .base import BaseModel

modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
classes = [cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)]
supported_models = {cls.NAME: cls for cls in classes if issubclass(cls, BaseModel) and cls is not BaseModel}


def build_model(name, **kwargs):
    return supported_models[name](**kwargs)
"""


@pytest.fixture
def build_model(tmp_path, monkeypatch, toy_folders):
    """Put the file where the toolkit looks for models, and the settings into the environment."""
    models = tmp_path / "almeval" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").touch()
    (models / "base.py").write_text(BASE)
    (models / "__init__.py").write_text(PACKAGE)
    shutil.copy(ADAPTER, models)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in {
        "VITA_AUDIO_MODEL": toy_folders.model,
        "VITA_AUDIO_TOKENIZER": toy_folders.audio_tokenizer,
        "VITA_AUDIO_DECODER": toy_folders.audio_decoder,
        "VITA_AUDIO_DEVICE": "cpu",
        "VITA_AUDIO_MODE": "turbo",
        "VITA_AUDIO_MAX_NEW_TOKENS": 20,
    }.items():
        monkeypatch.setenv(name, str(value))
    yield importlib.import_module("almeval.models").build_model
    for name in [name for name in sys.modules if name.split(".")[0] == "almeval"]:
        del sys.modules[name]


@pytest.fixture
def wav(tmp_path):
    def write(seconds):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, np.random.default_rng(0).standard_normal(int(16_000 * seconds)) * 0.1, 16_000)
        return str(path)

    return write


def message(audio, text="", *, task="ASR", interactive="Audio-analysis", **meta):
    meta = {"task": task, "interactive": interactive, "audio_type": "Speech", "dataset_name": "toy"} | meta
    return {"index": 0, "audio": [audio], "text": text, "meta": meta}


def test_every_task_is_answered_as_the_model_answers_it(build_model, wav, toy_folders):
    model, speech_lm, path = build_model("VITA-Audio"), load_toy(toy_folders), wav(1)
    assert model.NAME == "VITA-Audio"
    for given, conversation, prompt in (
        (message(path, "write this down", lang="en"), asr_conversation(path), "Convert the speech to text."),
        (
            message(path, task="Ref-QA", interactive="Audio-QA"),
            sts_conversation(path, system="omni"),
            "Your Name: Omni\nYour Gender: female\nRespond in a text-audio interleaved manner.",
        ),
        (
            message(path, "a or b?", task="MQA", audio_type="AudioEvent"),
            sts_conversation(path, text="a or b?"),
            "a or b?",
        ),
    ):
        expected = speech_lm.respond(conversation, "turbo", max_new_tokens=20, decode_audio=False, do_sample=False)
        assert model(given) == (prompt, expected.text.strip())


def test_no_sample_is_left_out_of_the_score(build_model, wav, tmp_path, monkeypatch):
    """The toolkit drops answers of None and "null"."""
    model = build_model("VITA-Audio")
    (tmp_path / "noise.wav").write_bytes(b"noise")
    assert model(message(str(tmp_path / "noise.wav"))) == ("Convert the speech to text.", "")
    assert model(message(wav(61)))[1] is not None and model(message(wav(0.05)))[1] is not None
    monkeypatch.setattr(model.model, "generate_until", lambda *_, **__: ["null"])
    assert model(message(wav(1)))[1] == "null."


def test_a_model_must_be_named(build_model, monkeypatch, toy_folders):
    monkeypatch.delenv("VITA_AUDIO_MODEL")
    with pytest.raises(ValueError, match="set VITA_AUDIO_MODEL"):
        build_model("VITA-Audio")
    assert build_model("VITA-Audio", model_path=toy_folders.model, plan="vanilla").model.plan == "vanilla"

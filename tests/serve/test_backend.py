"""`--backend vllm`: the server in front of an engine says what it says with the model itself."""

import io

import pytest
import soundfile
from engine_stub import run_engine
from toy_server import serve
from toy_speech_lm import load_toy

from vita_audio.inference.engine import EngineLM
from vita_audio.serve.__main__ import load_models, parse_arguments

URL = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="module")
def vanilla_lm(toy_folders):
    speech_lm = load_toy(toy_folders)
    speech_lm.model.generation_config.mtp_inference_mode = "vanilla"
    return speech_lm


def ask(speech_lm):
    """Return the text of a chat, and the samples of a spoken text."""
    with serve(speech_lm) as server:
        question = [{"role": "user", "content": "what is the day"}]
        chat = server.client.chat.completions.create(model="toy", messages=question, max_completion_tokens=30)
        speech = server.client.audio.speech.create(
            model="toy", voice="default", input="dog", response_format="wav"
        ).content
    return chat.choices[0].message.content, soundfile.read(io.BytesIO(speech))[0].tolist()


def test_answers_are_those_of_the_model_itself(vanilla_lm, toy_folders):
    with run_engine(vanilla_lm.model) as engine:
        engine_lm = EngineLM.connect(engine.url, toy_folders.model, vanilla_lm.audio_tokenizer)
        text, samples = ask(engine_lm)
        assert len(engine.requests) == 2
    assert (text, samples) == ask(vanilla_lm)
    assert text and len(samples) > 1000


@pytest.mark.parametrize(
    "options, message",
    [
        (["--backend", "vllm"], "--backend vllm and --engine-url go together, got one of them"),
        (["--engine-url", URL], "--backend vllm and --engine-url go together, got one of them"),
        (["--backend", "vllm", "--engine-url", URL, "--quantize", "int8"], "--quantize is for --backend transformers"),
        (["--backend", "vllm", "--engine-url", URL, "--adapter", "a"], "--adapter is for --backend transformers"),
    ],
)
def test_wrong_options_get_one_line(capsys, options, message):
    with pytest.raises(SystemExit):
        parse_arguments(options)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and message in errors


def test_without_an_engine_the_error_says_what_to_do(toy_folders):
    folders = ["--audio-tokenizer-path", toy_folders.audio_tokenizer, "--audio-decoder-path", toy_folders.audio_decoder]
    options = ["--model", toy_folders.model, *folders, "--backend", "vllm", "--engine-url", URL]
    with pytest.raises(ConnectionError, match=f"no engine at {URL}"):
        load_models(parse_arguments(list(map(str, options))))

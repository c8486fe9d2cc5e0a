"""The inference tool on tiny random weights: every task, streaming, and one clear line for wrong input."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_adapters import save_toy_adapter
from toy_speech_lm import TINY_TOKENIZER, load_toy

from tools import inference_sts
from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
from vita_audio.command_line import load_speech_lm
from vita_audio.inference.tasks import make_conversation
from vita_audio.text import TextTokenizer

TOOLS = Path(__file__).parents[2] / "tools"
RATE = 22050


@pytest.fixture
def question(tmp_path):
    """A second of noise, 8 kHz stereo."""
    path = tmp_path / "question.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((8000, 2)), 8000)
    return path


@pytest.fixture
def run(toy_folders, tmp_path, capsys):
    """Run the tool on the toy model, the answer's audio in `tmp_path`; return what it prints."""

    def run(*arguments, output="answer.wav"):
        folders = {
            "--model": toy_folders.model,
            "--audio-tokenizer-path": toy_folders.audio_tokenizer,
            "--audio-decoder-path": toy_folders.audio_decoder,
            "--max-new-tokens": 40,
            "--device": "cpu",
        }
        if output is not None:
            folders["--output"] = tmp_path / output
        given = [str(argument) for argument in arguments]
        defaults = [str(part) for name, value in folders.items() if name not in given for part in (name, value)]
        inference_sts.main([*defaults, *given])
        return capsys.readouterr().out

    return run


def refused(run, capsys, *arguments, output="answer.wav"):
    """Run the tool, which must end with exit code 2, and return the one line it writes."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments, output=output)
    written = capsys.readouterr()
    assert ended.value.code == 2 and written.out == ""
    assert written.err.count("\n") == 1 and "Traceback" not in written.err
    return written.err


def expected_answer(toy_folders, task, **inputs):
    speech_lm = load_toy(toy_folders)
    return speech_lm.respond(make_conversation(task, **inputs), max_new_tokens=40, decode_audio=False)


def test_synthesis_prints_text_and_writes_audio(run, toy_folders, tmp_path):
    printed = run("--task", "tts", "--text", "Hello")
    expected = expected_answer(toy_folders, "tts", text="Hello")
    assert printed.startswith(expected.text + "\n")
    report = re.search(
        r"answer.wav: ([\d.]+) s of speech, first audio after (\d+) ms, real-time factor ([\d.]+)", printed
    )
    samples, rate = soundfile.read(tmp_path / "answer.wav")
    assert rate == RATE and len(samples) / rate == pytest.approx(float(report[1]), abs=0.01)
    assert len(samples) / rate == pytest.approx(len(expected.codes) / 12.5, rel=0.05)


@pytest.mark.parametrize("mode", ["vanilla", "2,3"])
def test_streaming_prints_the_same_text_and_as_much_audio(run, question, tmp_path, mode):
    arguments = ("--task", "sts", "--audio", question, "--mode", mode)
    whole = run(*arguments)
    streamed = run(*arguments, "--stream", "--stream-chunks", "6", "12", output="streamed.wav")
    assert streamed[: streamed.rindex("\n", 0, -1)] == whole[: whole.rindex("\n", 0, -1)]
    assert soundfile.info(tmp_path / "streamed.wav").frames == soundfile.info(tmp_path / "answer.wav").frames > 0
    latency = re.compile(r"first audio after (\d+) ms, real-time factor [\d.]+\n$")
    assert latency.search(streamed) and latency.search(whole)


def test_audio_is_on_disk_while_it_comes(toy_folders, tmp_path):
    """Whoever reads the file during the answer finds all samples so far; its header states the length at the end."""
    path = tmp_path / "answer.wav"
    seen = []

    def watched(chunks):
        """Look at the file whenever the tool asks for the next chunk."""
        num_samples = 0
        for chunk in chunks:
            yield chunk
            num_samples += len(chunk.wave)
            if num_samples:
                seen.append(soundfile.info(path).frames == num_samples)

    chunks = load_toy(toy_folders).stream(make_conversation("tts", text="Hello"), max_new_tokens=40)
    inference_sts.write_answer(watched(chunks), path, RATE)
    assert seen and all(seen)


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_recognition_and_chat_only_print(run, toy_folders, question, tmp_path, stream):
    recognised = run("--task", "asr", "--audio", question, *stream, output=None)
    assert recognised == expected_answer(toy_folders, "asr", audio=question).text + "\n"
    chat = run("--task", "text", "--text", "Hello", "--system", "luke", *stream, output=None)
    assert chat == expected_answer(toy_folders, "text", text="Hello", system="luke").text + "\n"
    assert not list(tmp_path.glob("*answer*"))


def test_voice_prompt_and_other_formats(run, toy_folders, question, tmp_path):
    printed = run("--task", "tts", "--text", "Hello", "--voice-prompt", question, output="deep/answer.flac")
    assert printed.startswith(expected_answer(toy_folders, "tts", text="Hello", voice_prompt=question).text)
    assert soundfile.info(tmp_path / "deep" / "answer.flac").samplerate == RATE


def test_voice_of_the_decoder(run, capsys, question, tmp_path, monkeypatch):
    waves = []
    for voice in ((), ("--voice", question)):
        for stream in ((), ("--stream",)):
            run("--task", "tts", "--text", "Hello", *voice, *stream)
            waves.append(soundfile.read(tmp_path / "answer.wav")[0])
    assert len(waves[0]) == len(waves[1]) and not np.array_equal(waves[0], waves[2])
    assert not np.array_equal(waves[1], waves[3])
    monkeypatch.setattr(GLM4VoiceTokenizer, "needs_voice", True)
    message = "inference_sts: glm4voice codes do not contain a voice; give a recording as --voice"
    assert message in refused(run, capsys, "--task", "tts", "--text", "Hello")
    run("--task", "text", "--text", "Hello", output=None)  # nothing to speak


def test_sampling_follows_the_seed(run):
    arguments = ("--task", "text", "--text", "Hello", "--do-sample", "--temperature", "2")
    first, again, other = (run(*arguments, "--seed", seed, output=None) for seed in (1, 1, 2))
    assert first == again != other
    greedy = run("--task", "text", "--text", "Hello", "--no-do-sample", output=None)
    assert greedy == run("--task", "text", "--text", "Hello", output=None) != first


@pytest.fixture(scope="module")
def adapters(toy_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_toy_adapter(toy_folders, folder / name, seed=seed) for seed, name in enumerate(("one", "two"))}


def test_several_adapters_answer_like_each_alone(run, adapters, tmp_path, toy_folders):
    base, task = toy_folders.model.name, ("--task", "tts", "--text", "Hello", "--do-sample")
    printed = run(*task, "--adapter", *(f"{name}={folder}" for name, folder in adapters.items()))
    parts = re.split(r"^\[(\w+)\]\n", printed, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], (part.splitlines()[0] for part in parts[2::2]), strict=True))
    assert parts[0] == "" and list(texts) == [base, *adapters] and len(set(texts.values())) == 3
    for name, text in texts.items():
        alone = run(*task, *(("--adapter", adapters[name]) if name in adapters else ()), output="alone.wav")
        assert alone.splitlines()[0] == text
        waves = [soundfile.read(tmp_path / file)[0] for file in (f"answer-{name}.wav", "alone.wav")]
        np.testing.assert_allclose(*waves, atol=1e-4)
    assert not (tmp_path / "answer.wav").exists()


def test_wrong_adapters_get_one_line(run, capsys, adapters, toy_folders):
    (one, two), task = adapters.values(), ("--task", "text", "--text", "x")
    wrong = {
        ("--adapter", one, f"one={two}"): "must differ from each other and from the base's, got one twice",
        ("--adapter", one, f"model={two}"): "must differ from each other and from the base's, got model twice",
        ("--adapter", one, f"whole={toy_folders.model}"): "holds no adapter: adapter_config.json is missing",
        ("--adapter", one, f"{one}x"): "no folder",
        ("--adapter", one, f"={two}"): "must be the folder of an adapter, or NAME=FOLDER, got '=",
        ("--adapter", one, two, "--quantize", "int8"): "--quantize takes one --adapter, got model, one, two",
        ("--adapter", one, two, "--device-map", "auto"): "--device-map takes one --adapter, got model, one, two",
    }
    for arguments, message in wrong.items():
        assert message in refused(run, capsys, *task, *arguments, output=None)


def test_answer_without_audio_says_so(run, tmp_path):
    for stream in ((), ("--stream",)):
        printed = run("--task", "tts", "--text", "Hello", "--max-new-tokens", "1", *stream)
        assert "the answer has no audio, " in printed and not (tmp_path / "answer.wav").exists()


def write_audio(folder, name):
    path = folder / ("sound.raw" if name == "raw" else f"{name}.wav")
    waves = {"nan": np.full(1000, np.nan), "empty": np.zeros(0), "long": np.zeros(16000 * 600, dtype=np.float32)}
    if name in waves:
        soundfile.write(path, waves[name], 16000, subtype="FLOAT")
    elif name == "text":
        path.write_text("no sound")
    elif name in ("nothing", "raw"):
        path.write_bytes(b"" if name == "nothing" else bytes(1000))
    elif name == "truncated":
        soundfile.write(path, np.zeros(16000), 16000)
        path.write_bytes(path.read_bytes()[:8000])
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "missing.wav: no such file"),
        ("empty", "empty.wav: file has no samples"),
        ("nothing", "nothing.wav: file is empty"),
        ("text", "text.wav: not readable as audio"),
        ("truncated", "truncated.wav: truncated, its header states 1.00 s"),
        ("nan", "nan.wav: 1000 of 1000 samples are NaN"),
        ("raw", "not readable as audio (samplerate must be specified)"),
        ("long", "too long, the model reads at most 41 s, got 600 s"),
    ],
)
def test_bad_audio(run, capsys, tmp_path, name, message):
    path = write_audio(tmp_path, name)
    assert message in refused(run, capsys, "--task", "sts", "--audio", path)
    assert message in refused(run, capsys, "--task", "tts", "--text", "Hi", "--voice-prompt", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "sing"), "argument --task: invalid choice: 'sing'"),
        ((), "the following arguments are required: --task"),
        (("--task", "tts", "--text", ""), "text of task tts must not be empty"),
        (("--task", "tts"), "task tts needs text"),
        (("--task", "asr", "--text", "x"), "task asr needs audio"),
        (("--task", "tts", "--text", "x", "--mode", "warp"), "must be one of vanilla, balance, boost, turbo"),
        (("--task", "tts", "--text", "x", "--mode", "1,10,4"), "ratio must have an even number of integers"),
        (("--task", "tts", "--text", "say <|audio|>"), "one audio per <|audio|> tag, got 1 tags, 0 audios"),
        (("--task", "tts", "--text", "x" * 600), "512 positions"),
        (("--task", "tts", "--text", "x", "--max-new-tokens", "9999"), "512 positions"),
        (
            ("--task", "tts", "--text", "x", "--do-sample", "--top-p", "1.5"),
            "--top-p: must be above 0 and at most 1, got 1.5",
        ),
        (("--task", "tts", "--text", "x", "--model", "nowhere"), "no folder nowhere"),
        (
            ("--task", "tts", "--text", "x", "--audio-tokenizer-type", "mp3"),
            "argument --audio-tokenizer-type: invalid choice: 'mp3'",
        ),
        (("--task", "tts", "--text", "x", "--device", "cuda:77"), "device must be auto, cpu or a GPU that is here"),
        (("--task", "tts", "--text", "x", "--do-sample", "--temperature", "-1"), "temperature"),
    ],
)
def test_bad_arguments(run, capsys, arguments, message):
    assert message in refused(run, capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "x" * 600), "512 positions"),
        (("--text", "x", "--do-sample", "--temperature", "-1"), "temperature"),
        (("--text", "x", "--audio-decoder-path", "nowhere"), "nowhere"),
    ],
)
def test_bad_arguments_while_streaming(run, capsys, arguments, message):
    assert message in refused(run, capsys, "--task", "tts", "--stream", *arguments)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder.wav", "--output must be a file, got the folder"),
        ("question.wav/answer.wav", "cannot be written"),
        ("answer.txt", "must end in the name of a sound format, such as .wav or .flac"),
        ("answer.raw", "must end in the name of a sound format, such as .wav or .flac"),
        ("answer", "must end in the name of a sound format"),
    ],
)
def test_bad_output(run, capsys, question, tmp_path, output, message):
    (tmp_path / "folder.wav").mkdir()
    assert message in refused(run, capsys, "--task", "sts", "--audio", question, output=output)


def test_checkpoint_of_another_vocabulary(run, capsys, toy_folders, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in toy_folders.model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    TextTokenizer.from_pretrained(TINY_TOKENIZER, 64).save_pretrained(folder)
    message = refused(run, capsys, "--task", "tts", "--text", "x", "--model", folder)
    assert "has 64 audio codes, the audio tokenizer glm4voice 48" in message


def test_a_speech_decoder_is_missed_before_the_model_is_loaded(toy_folders, tmp_path, capsys):
    folders = {"--model": tmp_path / "none", "--audio-tokenizer-path": toy_folders.audio_tokenizer}
    folders |= {"--output": tmp_path / "two.wav", "--device": "cpu"}
    with pytest.raises(SystemExit):
        inference_sts.main(
            ["--task", "tts", "--text", "two", *(str(part) for pair in folders.items() for part in pair)]
        )
    assert "glm4voice was loaded without a speech decoder; give decoder_path" in capsys.readouterr().err


def test_the_attention_back_end_can_be_chosen(toy_folders, monkeypatch):
    options = ["--task", "text", "--text", "two", "--model", str(toy_folders.model), "--device", "cpu"]
    options = inference_sts.parse_arguments([*options, "--attn-implementation", "eager"])
    speech_lm = load_speech_lm(options, load_toy(toy_folders).audio_tokenizer)
    assert speech_lm.model.config._attn_implementation == "eager"
    options.attn_implementation = "flash_attention_2"
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU and the package flash-attn"):
        load_speech_lm(options, speech_lm.audio_tokenizer)


def test_missing_default_model_names_the_quick_start(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        inference_sts.main(["--task", "text", "--text", "x"])
    assert ended.value.code == 2
    assert "no model in outputs/quickstart/stage4; bash scripts/quickstart.sh trains it" in capsys.readouterr().err


def test_runs_as_a_program(tmp_path):
    command = [sys.executable, TOOLS / "inference_sts.py", "--task", "asr", "--audio", tmp_path / "none.wav"]
    result = subprocess.run([*map(str, command), "--model", "x", "--output", "a.b"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("inference_sts: --output must end in the name of a sound format")

"""The commands of the README's section on released weights, run on toy folders in place of the downloads.

Where RELEASED_WEIGHTS names the folder that the downloads made, `pytest -m weights` runs them on the real ones.
"""

import importlib
import json
import os
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from files.released_folders import as_shards, as_the_public_code_saves
from safetensors.torch import load_file
from speech_decoder.test_released_files import UNUSED_IN_THE_RELEASED_FILE
from toy_speech_lm import make_toy_folders

from tools import check_checkpoint
from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.loading import load_weights, read_config
from vita_audio.text import CONTINUOUS_INPUT

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"## Use the released weights\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)[1]
LINES = "\n".join(re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)).replace("\\\n", " ").splitlines()
DOWNLOADS = [line.split() for line in LINES if line.startswith("hf download")]
COMMANDS = [line for line in LINES if line.startswith("python")]
REAL_WEIGHTS = os.environ.get("RELEASED_WEIGHTS")


def make_sensevoice_small(plus_model: Path, folder: Path) -> None:
    """Move what the released Plus models do not bring into a folder like SenseVoiceSmall."""
    folder.mkdir()
    shutil.move(plus_model / "am.mvn", folder)
    model, _ = load_weights(plus_model, read_config(plus_model, SPEECH_CONFIGS))
    torch.save(model.model.audio_model.model.state_dict(), folder / "model.pt")
    settings = {"encoder": "SenseVoiceEncoderSmall", "encoder_conf": asdict(model.config.sensevoice)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def weights(toy_folders, tmp_path_factory):
    """Folders as the README's downloads would leave them: shards, torch files, and code that must not run."""
    folder = tmp_path_factory.mktemp("released")
    plus = make_toy_folders(tmp_path_factory.mktemp("plus"), audio_input=CONTINUOUS_INPUT)
    sources = {
        "VITA-Audio-Boost": toy_folders.model,
        "VITA-Audio-Plus-Boost": plus.model,
        "glm-4-voice-tokenizer": toy_folders.audio_tokenizer,
        "glm-4-voice-decoder": toy_folders.audio_decoder,
    }
    for name, source in sources.items():
        shutil.copytree(source, folder / "weights" / name)
    make_sensevoice_small(folder / "weights" / "VITA-Audio-Plus-Boost", folder / "weights" / "SenseVoiceSmall")
    decoder = folder / "weights" / "glm-4-voice-decoder"
    for name in ("flow", "hift"):
        torch.save(load_file(decoder / f"{name}.safetensors"), decoder / f"{name}.pt")
        (decoder / f"{name}.safetensors").unlink()
    settings = (decoder / "config.yaml").read_text()
    (decoder / "config.yaml").write_text(UNUSED_IN_THE_RELEASED_FILE + settings)
    for model in ("VITA-Audio-Boost", "VITA-Audio-Plus-Boost"):
        as_shards(folder / "weights" / model)
        as_the_public_code_saves(folder / "weights" / model)
        path = folder / "weights" / model / "generation_config.json"  # short answers
        path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": 24}))
    write_question(folder)
    return folder


def write_question(folder: Path) -> None:
    soundfile.write(folder / "question.wav", 0.1 * np.sin(np.arange(8000) / 9), 16_000)


def run_command(command: str) -> None:
    """Run a command in this process, in the current folder."""
    _, program, *arguments = shlex.split(command)
    importlib.import_module(f"tools.{Path(program).stem}").main(arguments)


def test_every_folder_is_downloaded_before_it_is_used():
    places = [words[-1] for words in DOWNLOADS]
    assert len(DOWNLOADS) >= 5 and all(words[2].split("/")[1] == Path(words[-1]).name for words in DOWNLOADS)
    assert set(re.findall(r"weights/[\w.-]+", "\n".join(COMMANDS))) == set(places)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.search(r"weights/(\S+)", command)[1])
def test_commands_answer(command, weights, monkeypatch, capsys):
    monkeypatch.chdir(weights)
    run_command(command)
    assert "answer.wav: " in capsys.readouterr().out
    assert soundfile.info(weights / "answer.wav").frames > 0
    (weights / "answer.wav").unlink()


def test_folders_pass_the_check(weights, monkeypatch, capsys):
    assert "for folder in weights/*; do python tools/check_checkpoint.py $folder; done" in "\n".join(LINES)
    monkeypatch.chdir(weights)
    for folder in Path("weights").iterdir():
        check_checkpoint.main([str(folder)])
        assert capsys.readouterr().out.endswith("loads\n")


@pytest.mark.weights
@pytest.mark.skipif(not REAL_WEIGHTS, reason="RELEASED_WEIGHTS names no folder with the README's downloads")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.search(r"weights/(\S+)", command)[1])
def test_the_real_weights_pass_the_check_and_answer(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "weights").symlink_to(Path(REAL_WEIGHTS).resolve())
    write_question(tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in sorted(set(re.findall(r"weights/[\w.-]+", command))):
        run_command(f"python tools/check_checkpoint.py {folder}")
        assert capsys.readouterr().out.endswith("loads\n")
    run_command(command)  # the model chooses whether it speaks; its text is always there
    assert len(capsys.readouterr().out.strip().splitlines()) >= 2

"""A released decoder with pickled weights becomes one with safetensors that sounds the same."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tools import convert_speech_decoder
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder

TINY = Path(__file__).parents[1] / "assets" / "speech_decoder" / "tiny"


@pytest.fixture
def released(tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    shutil.copy(TINY / "config.yaml", folder)
    for name in ("flow", "hift"):
        torch.save(load_file(TINY / f"{name}.safetensors"), folder / f"{name}.pt")
    return folder


def test_converted_decoder_sounds_the_same(released, tmp_path, capsys):
    output = tmp_path / "converted"
    convert_speech_decoder.main([str(released), str(output)])
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "flow.safetensors", "hift.safetensors"]
    assert "flow.safetensors: 1," in capsys.readouterr().out
    waves = [SpeechDecoder.from_pretrained(folder).decode([1, 2, 3], num_steps=1) for folder in (released, output)]
    assert torch.equal(*waves)


def test_half_precision_and_wrong_folders(released, tmp_path, capsys):
    output = tmp_path / "half"
    convert_speech_decoder.main([str(released), str(output), "--dtype", "float16"])
    assert {value.dtype for value in load_file(output / "flow.safetensors").values()} == {torch.float16}
    for source, message in ((released, "half is not empty"), (tmp_path / "nowhere", "no folder")):
        target = output if source is released else tmp_path / "other"
        with pytest.raises(SystemExit):
            convert_speech_decoder.main([str(source), str(target)])
        assert message in capsys.readouterr().err

"""What a stage reads: the audio that is encoded is the audio that the packs use."""

import shlex

import pytest

from tools import extract_audio_codes
from vita_audio.training.arguments import parse_arguments
from vita_audio.training.stage_data import load_stage_data

SEED = 7  # with another seed a ratio below 1 chooses other rows


@pytest.fixture
def flags(toy_run, tmp_path):
    """Flags of a run on half of the toy data, without codes so far."""
    data = tmp_path / "half.yaml"
    data.write_text(f"dataset:\n  toy: {{ratio: 0.5, data_paths: [{toy_run.data.with_suffix('.jsonl')}]}}\n")
    folders = {"audio_code_dir": tmp_path / "codes", "pack_cache_dir": tmp_path / "packs"}
    return toy_run.flags(tmp_path / "run", dataset_name=data, seed=SEED, **folders)


def test_extraction_encodes_the_rows_that_the_seed_chooses(flags):
    packs = load_stage_data(*parse_arguments([*flags, "--extract_codes", "true"])).packs
    assert sum(list(pack["position_ids"]).count(0) for pack in packs) == 8


def test_the_command_for_missing_codes_makes_them(flags, capsys):
    with pytest.raises(FileNotFoundError, match="no codes for .*extract_audio_codes.py") as error:
        load_stage_data(*parse_arguments(flags))
    command = str(error.value).partition("python tools/extract_audio_codes.py ")[2].partition(", or train")[0]
    extract_audio_codes.main([*shlex.split(command), "--devices", "cpu"])
    assert " 0 failed" in capsys.readouterr().out
    assert len(load_stage_data(*parse_arguments(flags)).packs)

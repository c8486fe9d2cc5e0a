"""The data of a stage: the audio that is encoded is the audio that the packs use."""

import shlex

import pytest

from tools import extract_audio_codes
from vita_audio.training.stage_data import load_stage_data

SEED = 7  # with another seed a ratio below 1 chooses other rows


@pytest.fixture
def settings(toy_run, tmp_path):
    """Make the settings for half of the toy data, without codes so far, in folders whose names need quotes."""
    data = tmp_path / "half of it.yaml"
    data.write_text(f"dataset:\n  toy: {{ratio: 0.5, data_paths: [{toy_run.data.with_suffix('.jsonl')}]}}\n")

    def make(**changes):
        values = {
            "dataset_name": str(data),
            "audio_code_dir": tmp_path / "the codes",
            "pack_cache_dir": tmp_path / "packs",
        }
        return toy_run.settings(**values | {"seed": SEED} | changes)

    return make


def test_extraction_encodes_the_rows_that_the_seed_chooses(settings):
    packs = load_stage_data(settings(extract_codes=True)).packs
    assert sum(list(pack["position_ids"]).count(0) for pack in packs) == 8


def test_only_the_main_process_encodes(settings):
    with pytest.raises(FileNotFoundError, match="no codes for"):
        load_stage_data(settings(extract_codes=True), is_main=False)


def test_the_command_for_missing_codes_makes_them(settings, capsys):
    with pytest.raises(FileNotFoundError, match="no codes for .*extract_audio_codes.py") as error:
        load_stage_data(settings())
    command = str(error.value).partition("python tools/extract_audio_codes.py ")[2].partition(", or train")[0]
    extract_audio_codes.main([*shlex.split(command), "--devices", "cpu"])
    assert " 0 failed" in capsys.readouterr().out
    assert len(load_stage_data(settings()).packs)

"""tools/check_checkpoint.py on toy folders, on the released layouts at full size, and on damaged folders.

A folder of full size is made of the released names and shapes: the heads of its weight files are real, the values are a
hole in a sparse file.
"""

import json
import os
import shutil
import sys
from contextlib import redirect_stdout
from math import prod
from pathlib import Path

import pytest
import torch
from audio_tokenizers.tiny_folders import MAKE_FOLDERS, PACKAGES
from files.broken_folders import cut_off, make_pointer
from safetensors.torch import load_file, save_file

from tools import check_checkpoint
from vita_audio.models import Qwen2MTPConfig

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"
SHIPPED = ROOT / "vita_audio" / "assets"


@pytest.fixture
def check(capsys):
    """Run the tool; return its exit code and the report."""

    def run(folder, *options):
        try:
            check_checkpoint.main([str(folder), "--json", *map(str, options)])
            code = 0
        except SystemExit as end:
            code = end.code
        return code, json.loads(capsys.readouterr().out)

    return run


def write_hollow(path: Path, shapes: dict[str, list[int]], dtype: str = "BF16") -> None:
    """Write a safetensors file of these tensors that takes no room on the disk."""
    entries, place = {}, 0
    for name, shape in shapes.items():
        end = place + prod(shape) * (2 if dtype == "BF16" else 4)
        entries[name], place = {"dtype": dtype, "shape": shape, "data_offsets": [place, end]}, end
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + place)


def released_model(folder: Path, name: str, num_shards: int = 4) -> None:
    """Write a model of 7B in shards, with the tokenizer of Qwen2.5 in place of its own."""
    shapes = json.loads((ASSETS / "model" / f"keys_7B_{name}.json").read_text())["keys"]
    variant = name.replace("plus", "sensevoice")
    shutil.copy(ROOT / "configs" / "models" / f"qwen2_7b_{variant}.json", folder / "config.json")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "prompts" / file, folder)
    places, keys = {}, list(shapes)
    for number in range(num_shards):
        shard = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        write_hollow(folder / shard, {key: shapes[key] for key in keys[number::num_shards]})
        places |= dict.fromkeys(keys[number::num_shards], shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize(
    ("name", "num_parameters", "dry_run"),
    [
        ("mtp1", 7_989_116_928, "16 tokens to logits (1, 16, 168072), 1 MTP modules"),
        (
            "plus_mtp10",
            10_566_592_831,
            "10 rows of features to 14 places, 16 tokens to logits (1, 16, 168072), 10 MTP modules",
        ),
    ],
)
def test_released_models_fit_at_full_size(check, tmp_path, name, num_parameters, dry_run):
    released_model(tmp_path, name)
    code, report = check(tmp_path)
    [part] = report["parts"]
    assert (report["num_parameters"], part["dry_run"]) == (num_parameters, dry_run)
    assert part["missing"] == part["unexpected"] == [] and part["misshapen"] == {}
    assert len(part["files"]) == 4 and part["parameters"] == {"bfloat16": num_parameters}
    # only its tokenizer is not that of a trained model
    assert code == 1 and [problem for problem in report["problems"] if "has no audio codes" not in problem] == []


def test_released_speech_tokenizer_fits_at_full_size(check, tmp_path):
    facts = json.loads((ASSETS / "speech_tokenizer" / "glm4voice_tokenizer_config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts["config"]))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts["preprocessor"]))
    keys = json.loads((ASSETS / "speech_tokenizer" / "keys_whisper_vq_encoder.json").read_text())["keys"]
    write_hollow(tmp_path / "model.safetensors", keys, "F32")
    code, report = check(tmp_path)
    assert (code, report["problems"], report["kind"]) == (0, [], "glm-4-voice-tokenizer")
    num_statistics = 16384 + 16384 * 1280  # of training: ema_count and ema_weight
    assert report["num_parameters"] == 343_599_360 + num_statistics and report["facts"] == {"codes": "16,384"}
    assert report["parts"][0]["dry_run"] == "80 mel frames to 10 codes"


def test_released_speech_encoder_fits_at_full_size(check, tmp_path):
    keys = json.loads((ASSETS / "sensevoice" / "keys_sensevoice_small.json").read_text())["keys"]
    weights = {name: torch.zeros(shape, dtype=torch.float16, device="meta") for name, shape in keys.items()}
    write_hollow(tmp_path / "model.safetensors", {name: list(value.shape) for name, value in weights.items()}, "F32")
    settings = "encoder: SenseVoiceEncoderSmall\nencoder_conf:\n  output_size: 512\n  num_blocks: 50\n  tp_blocks: 20\n"
    (tmp_path / "config.yaml").write_text(settings)
    shutil.copy(next((ASSETS / "sensevoice").rglob("am.mvn")), tmp_path)
    (tmp_path / "tokens.json").write_text('["<unk>", "<s>"]')  # in the copy on ModelScope; a list, and never read
    code, report = check(tmp_path)
    assert (code, report["problems"], report["kind"]) == (0, [], "sensevoice-small")
    assert report["num_parameters"] == 233_999_167
    assert report["parts"][0]["dry_run"] == "10 rows of features to 14 rows"
    (tmp_path / "config.yaml").write_text("encoder: SenseVoiceEncoderSmall\nencoder_conf: [cut")
    assert f"{tmp_path}/config.yaml is not YAML" in check(tmp_path)[1]["problems"][0]
    (tmp_path / "config.yaml").write_text(settings)
    (tmp_path / "am.mvn").unlink()
    assert check(tmp_path)[1]["problems"][0].startswith(f"no am.mvn in {tmp_path}")


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        (SHIPPED / "speech_tokenizer", "glm-4-voice-tokenizer"),
        (SHIPPED / "speech_decoder", "glm-4-voice-decoder"),
        (SHIPPED / "tiny_text_lm", "qwen2"),
        (ASSETS / "tiny_tokenizer", "text-tokenizer"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_shipped_folders_load(check, folder, kind):
    code, report = check(folder)
    assert (code, report["problems"], report["kind"], report["fits"]) == (0, [], kind, True)
    assert all(part["dry_run"] for part in report["parts"])


@pytest.mark.parametrize("name", sorted(MAKE_FOLDERS.keys() - {"glm4voice"}))
def test_other_codecs_are_known(check, tmp_path, name):
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    with redirect_stdout(sys.stderr):  # a logger of these packages keeps the stdout it is made with
        folder, _ = MAKE_FOLDERS[name](tmp_path)
    code, report = check(folder)
    assert (code, report["problems"], report["kind"]) == (0, [], name)
    assert report["facts"]["fingerprint"].startswith(name)
    cut_off(next(path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".bin")), 100)
    code, report = check(folder)
    assert code == 1 and "cut off" in report["problems"][0]


def test_a_codec_whose_package_is_absent_is_known_too(check, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "snac", None)
    (tmp_path / "config.json").write_text(json.dumps({"vq_strides": [4, 2, 1]}))
    code, report = check(tmp_path)
    assert (code, report["kind"]) == (0, "snac24khz")
    assert report["facts"]["weights"].startswith("not compared: ") and "snac" in report["facts"]["weights"]


def test_decoder_files_of_torch_are_compared_too(check, tmp_path):
    shutil.copytree(SHIPPED / "speech_decoder", tmp_path / "decoder")
    for name in ("flow", "hift"):
        weights = load_file(tmp_path / "decoder" / f"{name}.safetensors")
        (tmp_path / "decoder" / f"{name}.safetensors").unlink()
        torch.save(weights, tmp_path / "decoder" / f"{name}.pt")
    assert check(tmp_path / "decoder")[0] == 0
    cut_off(tmp_path / "decoder" / "flow.pt", 100)
    code, report = check(tmp_path / "decoder")
    assert code == 1 and "flow.pt is cut off" in report["problems"][0]


def test_a_trained_model_in_words(toy_folders, capsys):
    check_checkpoint.main([str(toy_folders.model), "--load", "--device", "cpu", "--dtype", "bfloat16"])
    text = capsys.readouterr().out
    for line in (
        "VITA-Audio speech model",
        "16 tokens to logits (1, 16, 808), 4 MTP modules",
        "804 tokens for 808 rows, 48 audio codes from id 756",
        "ends at [716, 714], plan 1 10 4 10",
        " s, on cpu as bfloat16; peak memory ",
    ):
        assert line in text
    assert text.endswith("\nloads\n")


def test_what_a_stage_would_add(check, toy_folders, tmp_path):
    config = Qwen2MTPConfig.from_pretrained(toy_folders.model)
    layers = {"num_hidden_layers": config.num_hidden_layers + 2, "num_nextn_predict_layers": 6, "layer_types": None}
    (tmp_path / "more.json").write_text(json.dumps(config.to_dict() | layers))
    code, report = check(toy_folders.model, "--config", tmp_path / "more.json")
    ways = report["parts"][0]["initialised"]
    assert code == 0 and report["parts"][0]["missing"] == sorted(ways)
    assert {"mtp_projs.4.weight", "mtp_embed_norms.5.weight"} < ways.keys()
    assert set(ways.values()) == {"as the MTP module or layer before it"}


def damaged(toy_folders, tmp_path, damage):
    shutil.copytree(toy_folders.model, tmp_path / "model")
    damage(tmp_path / "model")
    return tmp_path / "model"


def rename_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights["mtp_proj.1.weight"] = weights.pop("mtp_projs.1.weight")
    weights["mtp_projs.2.weight"] = weights["mtp_projs.2.weight"][:4].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def set_acceptance(folder, value):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"acceptance": value}))


def test_the_acceptance_is_reported(check, toy_folders, tmp_path):
    code, report = check(damaged(toy_folders, tmp_path, lambda folder: set_acceptance(folder, 0.5)))
    assert code == 0 and "plan 1 10 4 10, acceptance 0.5" in json.dumps(report)


def test_weights_that_do_not_fit_are_named(check, toy_folders, tmp_path):
    code, report = check(damaged(toy_folders, tmp_path, rename_tensor))
    [part] = report["parts"]
    assert (code, part["missing"], part["unexpected"]) == (1, ["mtp_projs.1.weight"], ["mtp_proj.1.weight"])
    assert part["misshapen"] == {"mtp_projs.2.weight": [[4, 64], [32, 64]]}
    assert report["problems"][0] == "model: 1 tensors are missing and would start at random: mtp_projs.1.weight"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: make_pointer(folder / "model.safetensors"), "model.safetensors is a Git LFS pointer"),
        (lambda folder: cut_off(folder / "tokenizer.json"), "tokenizer.json is not JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in"),
        (
            lambda folder: set_acceptance(folder, 1.5),
            "generation_config.json: acceptance must be a number from 0 to 1, got 1.5",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "mistral"}'),
            "is not a known kind of checkpoint; it holds",
        ),
    ],
    ids=["pointer", "cut off", "no weights", "acceptance", "another kind"],
)
def test_damaged_folders_do_not_load(check, toy_folders, tmp_path, damage, problem):
    code, report = check(damaged(toy_folders, tmp_path, damage))
    assert code == 1 and any(problem in one for one in report["problems"]) and not report["fits"]


def test_a_folder_of_folders_points_inside(check, toy_folders):
    code, report = check(toy_folders.model.parent)
    assert code == 1 and "look into model, tokenizer" in report["problems"][0]


def test_wrong_arguments_have_a_code_of_their_own(capsys, tmp_path):
    for arguments in ([str(tmp_path / "nowhere")], []):
        with pytest.raises(SystemExit) as end:
            check_checkpoint.main(arguments)
        assert end.value.code == 2
    assert "check_checkpoint: no folder" in capsys.readouterr().err

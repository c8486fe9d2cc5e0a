"""The training program, run in this process with plain transformers; DeepSpeed runs are in tests/scripts."""

import json
import re
import shutil
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from toy_run import logged, make_merged_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.finetune_sts import main as train
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.training import stage
from vita_audio.training.run_folder import ARGUMENTS_FILE, RESULTS_FILE


@pytest.fixture(scope="module")
def stages(toy_run, tmp_path_factory):
    """The four stages, one after the other, two steps each; the first one extracts the codes."""
    folder = tmp_path_factory.mktemp("stages")
    changes = [
        {"extract_codes": True},
        {"config_name": toy_run.config(1), "language_model_freeze": True},
        {"config_name": toy_run.config(3), "language_model_freeze": True},
        {"config_name": toy_run.config(3), "mtp_model_lr_mult": 10, "weight_decay": 0.1},
    ]
    start = toy_run.text_model
    for number, change in enumerate(changes, start=1):
        output_dir = folder / str(number)
        train(toy_run.flags(output_dir, model_name_or_path=start, max_steps=2, **change))
        start = output_dir
    return [folder / str(number) for number in range(1, 5)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_each_stage_leaves_a_model_that_loads(stages, toy_run):
    audio_tokenizer = get_audio_tokenizer("glm4voice", toy_run.audio_tokenizer).identity
    for folder, num_modules in zip(stages, (0, 1, 3, 3), strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.audio_tokenizer == audio_tokenizer
        assert model.config.num_nextn_predict_layers == num_modules
        assert model.config.use_cache
        assert model.generation_config.mtp_inference_mode == [1, 10, 4, 10]
        assert "<|audio_0|>" in AutoTokenizer.from_pretrained(folder).get_vocab()
        assert (folder / "curves.png").stat().st_size > 10_000
        assert "samples left out: 0" in (folder / "report.html").read_text(encoding="utf-8")


def test_each_stage_changes_what_it_trains_and_nothing_else(stages):
    first, second, third, fourth = map(weights, stages)
    for name, value in first.items():
        assert torch.equal(second[name], value) and torch.equal(third[name], value), name
        assert not torch.equal(fourth[name], value), name
    for before, after in ((second, third), (third, fourth)):
        for name in before.keys() - first.keys():
            assert not torch.equal(before[name], after[name]), name


def test_results_tell_losses_per_depth_and_time(stages):
    results = json.loads((stages[3] / RESULTS_FILE).read_text(encoding="utf-8"))
    assert results["steps"] == 2 and results["minutes"] > 0 and results["tokens_per_second"] > 0
    assert list(results["final_losses"]) == ["main", "mtp_0", "mtp_1", "mtp_2"]
    assert results["final_loss"] == pytest.approx(logged(stages[3])[-1])
    main, *modules = results["final_losses"].values()
    assert 0 < results["final_loss"] <= main + sum(modules) / 3 + 1e-4  # modules are divided by the backbone's targets


def test_a_finished_run_is_left_alone(stages, toy_run):
    before = (stages[0] / RESULTS_FILE).stat().st_mtime_ns
    train(toy_run.flags(stages[0], max_steps=2))
    assert (stages[0] / RESULTS_FILE).stat().st_mtime_ns == before


def test_a_finished_run_is_not_taken_for_one_with_other_arguments(stages, toy_run, capsys):
    before = (stages[0] / ARGUMENTS_FILE).read_bytes()
    with pytest.raises(SystemExit):
        train(toy_run.flags(stages[0], max_steps=2, learning_rate=2e-3, model_name_or_path=stages[1]))
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"finished run .*learning_rate 0\.001, now 0\.002; model_name_or_path .*--overwrite_outp", message)
    assert (stages[0] / ARGUMENTS_FILE).read_bytes() == before


def test_a_killed_run_continues_as_if_nothing_had_happened(stages, toy_run, tmp_path):
    def flags(output_dir):
        return toy_run.flags(
            output_dir, max_steps=7, lr_scheduler_type="cosine", warmup_steps=2, save_strategy="steps", save_steps=3
        )

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(flags(straight))  # eight packs, two a step: the second epoch begins in between
    shutil.copytree(straight, killed)
    for name in (RESULTS_FILE, "trainer_state.json", "model.safetensors"):
        (killed / name).unlink()
    (killed / "checkpoint-6" / "trainer_state.json").unlink()  # killed while it wrote this one
    shutil.rmtree(killed / "checkpoint-7")
    train(flags(killed))
    for key in ("loss", "learning_rate", "main_accuracy", "num_tokens"):
        assert logged(killed, key) == logged(straight, key), key
    assert len(logged(killed)) == 7
    minutes = logged(killed, "minutes")
    assert minutes == sorted(minutes)
    for name, value in weights(straight).items():
        torch.testing.assert_close(weights(killed)[name], value, atol=0, rtol=0)


def test_a_run_killed_before_its_results_takes_no_further_step(toy_run, stages, tmp_path):
    flags = toy_run.flags(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    train(flags)
    before, losses = weights(tmp_path), logged(tmp_path)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-3"]
    for name in (RESULTS_FILE, "trainer_state.json", "model.safetensors"):
        (tmp_path / name).unlink()
    train(flags)
    assert logged(tmp_path) == losses and len(losses) == 3
    for name, value in before.items():
        assert torch.equal(weights(tmp_path)[name], value), name


def test_a_folder_with_other_files_needs_overwriting(stages, toy_run, tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    flags = toy_run.flags(tmp_path, max_steps=1)
    with pytest.raises(SystemExit):
        train(flags)
    assert re.search(r"^finetune_sts.py: .*thesis\.tex.*--overwrite_output_dir", capsys.readouterr().err, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    train([*flags, "--overwrite_output_dir", "true"])
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / RESULTS_FILE).exists()


def test_a_run_without_matplotlib_ends_before_the_training(toy_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        train(toy_run.flags(tmp_path / "run"))
    assert re.search(r"a plot needs the package matplotlib .*vita-audio\[plots\]", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "training_args.bin"])
def test_a_result_that_cannot_be_written_ends_the_run_in_one_line(stages, toy_run, tmp_path, capsys, name):
    """A device that is always full stands in for the file; the second one is written by torch."""
    folder = tmp_path / "run"
    flags = toy_run.flags(folder, max_steps=1, save_strategy="steps", save_steps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "finish", partial(finish_on_full_disk, stage.finish, folder / name))
        with pytest.raises(SystemExit) as ending:
            train(flags)
    assert ending.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("finetune_sts.py: ")]
    assert f"the result could not be written to {folder} (" in line and "continues from the last checkpoint" in line
    (folder / name).unlink()
    train(flags)
    assert (folder / RESULTS_FILE).exists() and logged(folder) == pytest.approx(logged(stages[0])[:1])


def finish_on_full_disk(finish, path, trainer):
    path.symlink_to("/dev/full")
    finish(trainer)


def test_missing_codes_stop_the_run_with_the_command(toy_run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(toy_run.flags(tmp_path / "run", audio_code_dir=tmp_path / "none", pack_cache_dir=tmp_path / "packs"))
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"no codes for .*extract_audio_codes.py --data .*data.yaml --codes .*none --seed 42 --audio", message
    )


def test_a_json_file_is_enough(stages, toy_run, tmp_path):
    flags = toy_run.flags(tmp_path / "run", max_steps=1)
    values = dict(zip((name.removeprefix("--") for name in flags[::2]), map(as_json, flags[1::2]), strict=True))
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    train([str(file)])
    assert logged(tmp_path / "run") == pytest.approx(logged(stages[0])[:1])
    recorded = json.loads((tmp_path / "run" / ARGUMENTS_FILE).read_text(encoding="utf-8"))
    assert recorded["learning_rate"] == 1e-3


def test_a_merged_adapter_keeps_its_head(toy_run, stages, tmp_path):
    before = make_merged_model(toy_run, tmp_path / "base")
    train(toy_run.flags(tmp_path / "run", model_name_or_path=tmp_path / "base", max_steps=1))
    after = weights(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        change = (after[name][:736] - before[name][:736]).abs().max()
        assert 0 < change < 0.01, name  # one small step


def as_json(flag):
    """Return the JSON value of a flag: true, a number, or a string."""
    try:
        return json.loads(flag.lower())
    except ValueError:
        return flag


def test_user_audio_can_be_learnt_too(stages, toy_run, tmp_path):
    train(toy_run.flags(tmp_path / "run", max_steps=1, user_audio_loss_weight=0.3))
    assert logged(tmp_path / "run")[0] != pytest.approx(logged(stages[0])[0], rel=1e-4)

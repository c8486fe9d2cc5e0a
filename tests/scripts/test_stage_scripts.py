"""The stage scripts: what they pass on, what they ask for, and real DeepSpeed runs on the CPU."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.toy_run import ROOT, STAGES, logged, make_merged_model, run_stage, stage_command

from tools.finetune_sts import main as train
from vita_audio.models.sensevoice import read_weights
from vita_audio.training.arguments import parse_arguments

SCRIPTS = sorted(path.name for path in STAGES.glob("*.sh"))
DEEPSPEED = ROOT / "scripts" / "deepspeed"
CONFIGS = sorted(path.stem.removeprefix("ds_config_") for path in DEEPSPEED.glob("ds_config_*.json"))
# name -> (learning rate, weight decay, steps, frozen language model, MTP multiplier, model config)
STAGE_SETTINGS = {
    "finetune_glm4voice_stage1": (6e-5, 0.0, 8000, False, 1.0, None),
    "finetune_glm4voice_mtp1_stage1": (1e-3, 0.0, 4000, True, 1.0, "qwen2_7b_mtp1"),
    "finetune_glm4voice_mtp10_stage1": (1e-3, 0.0, 8000, True, 1.0, "qwen2_7b_mtp10"),
    "finetune_glm4voice_mtp10_stage2": (5e-5, 0.1, 4000, False, 10.0, "qwen2_7b_mtp10"),
    "finetune_sensevoice_glm4voice_stage1": (6e-5, 0.0, 8000, False, 1.0, "qwen2_7b_sensevoice_mtp0"),
    "finetune_sensevoice_glm4voice_mtp1_stage1": (1e-3, 0.0, 4000, True, 1.0, "qwen2_7b_sensevoice_mtp1"),
    "finetune_sensevoice_glm4voice_mtp10_stage1": (1e-3, 0.0, 8000, True, 1.0, "qwen2_7b_sensevoice_mtp10"),
    "finetune_sensevoice_glm4voice_mtp10_stage2": (5e-5, 0.1, 4000, False, 10.0, "qwen2_7b_sensevoice_mtp10"),
}
COMPARED = ("loss", "main_loss", "mtp_0_accuracy", "grad_norm_backbone", "grad_norm_head", "grad_norm_mtp")
ONE_STEP = "--max_steps 1 --bf16 false --lr_scheduler_type constant --warmup_steps 0 --logging_steps 1 --weight_decay 0"


@pytest.fixture
def pass_on(toy_run, tmp_path):
    """Run a script with a torchrun that only writes down its arguments; return its own flags and those it passes on."""
    torchrun = tmp_path / "bin" / "torchrun"
    torchrun.parent.mkdir()
    torchrun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    torchrun.chmod(0o755)

    def run(script, *arguments, **variables):
        result = run_stage(script, toy_run, *arguments, bin_folder=torchrun.parent, **variables)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        program = lines.index(str(ROOT / "tools" / "finetune_sts.py"))
        return lines[:program], lines[program + 1 :]

    return run


def parse_alone(argv):
    """Parse flags without those for which the other processes would have to be there."""
    argv = list(argv)
    for name in ("--deepspeed", "--ddp_backend"):
        if name in argv:
            position = argv.index(name)
            del argv[position : position + 2]
    return parse_arguments(argv)


@pytest.mark.parametrize("path", sorted(DEEPSPEED.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_shell_and_touch_nothing_else(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK)
    code = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    assert not re.findall(r"\b(?:pip|apt|apt-get|rsync|rm|ln|cp|mv)\b|/data|/home|/root", "\n".join(code))


@pytest.mark.parametrize("script", SCRIPTS)
def test_stages_pass_the_settings_of_the_paper(pass_on, toy_run, script):
    _, argv = pass_on(script, 128, "first", "--lora", "r=8")
    model, data, training = parse_alone(argv)
    assert model.lora_settings.r == 8
    name = script.removesuffix(".sh")
    rate, decay, steps, frozen, multiplier, config_name = STAGE_SETTINGS[name]
    assert (training.learning_rate, training.weight_decay, training.max_steps) == (rate, decay, steps)
    assert (model.language_model_freeze, training.mtp_model_lr_mult) == (frozen, multiplier)
    assert model.config_name == (config_name and f"{STAGES}/../../../configs/models/{config_name}.json")
    assert config_name is None or Path(model.config_name).is_file()
    is_plus = "sensevoice" in name
    assert (model.audio_tokenizer_type, model.audio_model_freeze) == ("sensevoice_" * is_plus + "glm4voice", is_plus)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (1, 16)
    assert (training.adam_beta1, training.adam_beta2, training.max_grad_norm) == (0.9, 0.95, 1.0)
    assert (training.warmup_steps, training.lr_scheduler_kwargs) == (0.03, {"min_lr_rate": 0.1})
    assert (training.save_steps, training.save_total_limit, training.seed) == (0.1, 2, 42)
    assert model.plan.ratio == (1, 10, 4, 10) and model.model_max_length == 128
    assert training.output_dir == str(toy_run.folder / "outputs" / name / "first")
    assert data.dataset_name == str(toy_run.data)
    config = json.loads(Path(argv[argv.index("--deepspeed") + 1]).read_text(encoding="utf-8"))
    assert config["zero_optimization"]["stage"] == 2
    assert ("optimizer" in config) == (not name.endswith("mtp10_stage2"))


def test_all_stages_are_tested():
    assert [script.removesuffix(".sh") for script in SCRIPTS] == sorted(STAGE_SETTINGS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_stages_have_a_data_yaml_of_their_own(pass_on, script):
    _, argv = pass_on(script, 128, "first", DATA=None)
    path = os.path.normpath(argv[argv.index("--dataset_name") + 1])
    stage = "stage2" if script.endswith("mtp10_stage2.sh") else "stage1"
    assert path == str(ROOT / "configs" / f"sts_finetune_{stage}.yaml") and os.path.isfile(path)


def test_flags_override_in_the_order_stage_arguments_variable(pass_on, toy_run):
    flags = ["--learning_rate", "0.1", "--max_steps", "7"]
    variables = {"EXTRA_ARGS": "--learning_rate 0.2 --text_audio_interval_ratio 1 4", "DEEPSPEED_CONFIG": "none"}
    _, argv = pass_on("finetune_glm4voice_mtp1_stage1.sh", 64, "x", *flags, CONFIG_NAME=toy_run.config(1), **variables)
    model, _, training = parse_alone(argv)
    assert (training.learning_rate, training.max_steps, model.plan.ratio) == (0.2, 7, (1, 4))
    assert model.config_name == str(toy_run.config(1)) and "--deepspeed" not in argv


def test_the_folder_of_the_speech_encoder_is_passed_on(pass_on):
    script = "finetune_sensevoice_glm4voice_stage1.sh"
    _, argv = pass_on(script, 64, "x", AUDIO_MODEL_NAME_OR_PATH="folder of SenseVoiceSmall")
    assert parse_alone(argv)[0].audio_model_name_or_path == "folder of SenseVoiceSmall"
    assert parse_alone(pass_on(script, 64, "x")[1])[0].audio_model_name_or_path is None


def test_defaults_are_one_process_and_a_free_port(pass_on):
    torchrun, argv = pass_on("finetune_glm4voice_stage1.sh")
    assert torchrun == ["--standalone", "--nproc_per_node", "1"]
    assert argv[argv.index("--model_max_length") + 1] == "32768"
    assert argv[argv.index("--ddp_backend") + 1] == "gloo"


def test_several_machines_meet_at_the_master(pass_on):
    variables = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "master", "MASTER_PORT": 2000, "NPROC_PER_NODE": 3}
    torchrun, _ = pass_on("finetune_glm4voice_stage1.sh", 128, "x", **variables)
    expected = "--nnodes 2 --node_rank 1 --master_addr master --master_port 2000 --nproc_per_node 3"
    assert torchrun == expected.split()


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ((128, "x"), {"MODEL_NAME_OR_PATH": None}, "set MODEL_NAME_OR_PATH"),
        ((128, "x"), {"AUDIO_TOKENIZER_PATH": None}, "set AUDIO_TOKENIZER_PATH"),
        ((128, "x"), {"OUTPUT_ROOT": None}, "set OUTPUT_ROOT"),
        (("long", "x"), {}, "SEQ_LENGTH must be a number of tokens, got 'long'"),
        ((128, "x"), {"DEEPSPEED_CONFIG": "zero9.json"}, "DEEPSPEED_CONFIG: no such file: zero9.json"),
        ((128, "x"), {"NNODES": 2}, "NNODES=2 needs NODE_RANK"),
        ((128,), {"NNODES": 2, "NODE_RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 1}, "needs the TIMESTAMP argument"),
    ],
)
def test_what_is_missing_is_named(toy_run, arguments, variables, message):
    result = run_stage("finetune_glm4voice_stage1.sh", toy_run, *arguments, **variables)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize("script", ["finetune_glm4voice_stage1.sh", "finetune_sensevoice_glm4voice_mtp10_stage1.sh"])
def test_a_dry_run_of_7b_needs_nothing_but_the_script(toy_run, tmp_path, script):
    unset = ("MODEL_NAME_OR_PATH", "AUDIO_TOKENIZER_PATH", "OUTPUT_ROOT", "AUDIO_CODE_DIR", "DATA")
    flags = ("--dry_run", "--tokens_per_second", 20000)
    command, settings = stage_command(script, toy_run, *flags, **dict.fromkeys(unset), NPROC_PER_NODE=4, NNODES=4)
    result = subprocess.run(command, capture_output=True, text=True, **settings | {"cwd": tmp_path})
    assert result.returncode == 0, result.stderr
    table = {line.split("  ")[0]: line.split() for line in result.stdout.splitlines()}
    assert table["backbone"][1] == "6,525.6" and "ZeRO 3" in table
    assert table["backbone"][2] == ("0.0" if "mtp10" in script else "6,525.6")
    assert table["embeddings and head"][3] == "1,204.7"
    assert "16 GPUs, 1 x 32768 tokens each, bfloat16" in result.stdout and "days at 20000" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--dry_run false", "--dry-run=False"])
def test_a_dry_run_can_be_switched_off(pass_on, flag):
    _, argv = pass_on("finetune_glm4voice_stage1.sh", 128, "x", *flag.split())
    assert "--deepspeed" in argv and "--num_gpus" not in argv


def run_one_step(toy_run, stage2, name, *flags, **variables):
    """Run one step of the last stage on two processes; return its folder."""
    variables = {"MODEL_NAME_OR_PATH": stage2, "CONFIG_NAME": toy_run.config(1), "NPROC_PER_NODE": 2} | variables
    script = "finetune_glm4voice_mtp10_stage2.sh"
    result = run_stage(script, toy_run, 128, name, *ONE_STEP.split(), *flags, **variables)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return toy_run.folder / "outputs" / script.removesuffix(".sh") / name


def check_one_step(toy_run, stage2, folder):
    """The MTP multiplier works, the log counts all processes, and the model is whole."""
    before, after = (load_file(path / "model.safetensors") for path in (stage2, folder))
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    changes = {name: (after[name].float() - before[name]).abs().max().item() for name in before}
    layers = tuple(f"model.layers.{layer}." for layer in range(2))
    backbone = max(change for name, change in changes.items() if name.startswith(("model.norm", *layers)))
    modules = max(change for name, change in changes.items() if name.startswith(("mtp_", "model.layers.2.")))
    assert backbone == pytest.approx(5e-5, rel=0.02)  # the first step of Adam is the learning rate
    assert modules == pytest.approx(5e-4, rel=0.02)
    assert logged(folder, "num_tokens")[0] > 700  # all eight packs
    return [logged(folder, name)[0] for name in COMPARED]


def test_a_stage_runs_with_deepspeed_on_two_processes(toy_run, stage2):
    limit = ("--max_loss", 20)  # per target: about 13 in one process or two
    folder = run_one_step(toy_run, stage2, "two", "--gradient_accumulation_steps", 4, *limit)
    two = check_one_step(toy_run, stage2, folder)
    flags = toy_run.flags(toy_run.folder / "one", model_name_or_path=stage2, max_steps=1, learning_rate=5e-5)
    train([*flags, "--gradient_accumulation_steps", "4", "--mtp_model_lr_mult", "10"])
    one = toy_run.folder / "one"
    assert two == pytest.approx([logged(one, name)[0] for name in COMPARED], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [*CONFIGS, "none"])
def test_every_deepspeed_config_trains_alike(toy_run, stage2, config):
    path = config if config == "none" else DEEPSPEED / f"ds_config_{config}.json"
    folder = run_one_step(toy_run, stage2, config, "--gradient_accumulation_steps", 4, DEEPSPEED_CONFIG=path)
    values = check_one_step(toy_run, stage2, folder)
    plain = toy_run.folder / "outputs" / "finetune_glm4voice_mtp10_stage2" / "plain"
    if not plain.exists():
        run_one_step(toy_run, stage2, "plain", "--gradient_accumulation_steps", 4, DEEPSPEED_CONFIG="none")
    assert values == pytest.approx([logged(plain, name)[0] for name in COMPARED], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_keeps_the_head_of_a_merged_adapter(toy_run, stage2, tmp_path, config):
    before = make_merged_model(toy_run, tmp_path / "base")
    variables = {"MODEL_NAME_OR_PATH": tmp_path / "base", "NPROC_PER_NODE": 2, "OUTPUT_ROOT": tmp_path}
    variables |= {"DEEPSPEED_CONFIG": DEEPSPEED / f"ds_config_{config}.json"}
    script = "finetune_glm4voice_stage1.sh"
    result = run_stage(script, toy_run, 128, config, "--max_steps", 1, "--bf16", "false", **variables)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    folder = tmp_path / script.removesuffix(".sh") / config
    after = load_file(folder / "model.safetensors")
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert (after[name][:736] - before[name][:736]).abs().max() < 0.01, name  # one small step


@pytest.mark.slow
def test_plus_stages_train_alike_with_every_way_of_splitting(toy_run):
    """Two processes, of which one at times has a pack without audio."""
    script = "finetune_sensevoice_glm4voice_stage1.sh"
    variables = {
        "CONFIG_NAME": toy_run.config(0, plus=True),
        "AUDIO_MODEL_NAME_OR_PATH": toy_run.speech_encoder,
        "AUDIO_CODE_DIR": toy_run.folder / "plus_codes",
        "NPROC_PER_NODE": 2,
    }
    flags = "--max_steps 4 --bf16 false --logging_steps 1 --gradient_accumulation_steps 1 --extract_codes true".split()
    losses, encoders = {}, []
    for config in ("none", "zero2", "zero3"):
        path = config if config == "none" else DEEPSPEED / f"ds_config_{config}.json"
        result = run_stage(script, toy_run, 64, config, *flags, DEEPSPEED_CONFIG=path, **variables)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        folder = toy_run.folder / "outputs" / script.removesuffix(".sh") / config
        losses[config] = logged(folder)
        weights = load_file(folder / "model.safetensors")
        encoders.append({name: value for name, value in weights.items() if name.startswith("model.audio_model.")})
    assert len(losses["none"]) == 4 and losses["zero2"] == pytest.approx(losses["none"], rel=1e-4)
    assert losses["zero3"] == pytest.approx(losses["none"], rel=1e-4)
    for name, value in read_weights(toy_run.speech_encoder).items():
        assert all(torch.equal(encoder[f"model.audio_model.model.{name}"], value) for encoder in encoders), name

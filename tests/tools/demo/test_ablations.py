"""The ablations: what is trained from what, commands that their programs accept, and folders that do not fit."""

import json
import os
import subprocess

import pytest

from evaluation import run as evaluation
from tools.demo import ablation_report as report
from tools.demo import ablations as program
from tools.demo.ablations import ablations, main, make_setting, plan_steps, prepare
from tools.demo.plan import VARIANTS
from vita_audio.interleave import MODES
from vita_audio.models import Qwen2MTPConfig
from vita_audio.training.arguments import parse_arguments
from vita_audio.training.stage_model import check_configs, read_stage_config


@pytest.fixture
def base(tmp_path):
    """As much of a quick start as planning looks at."""
    folder = tmp_path / "quickstart"
    (folder / "corpus").mkdir(parents=True)
    for name in ("mtp.yaml", "stage4.yaml"):
        (folder / "corpus" / name).write_text("dataset: {}\n")
    config = Qwen2MTPConfig(num_hidden_layers=3, num_nextn_predict_layers=0, hidden_size=64, vocab_size=1480)
    config.save_pretrained(folder / "stage1")
    (folder / "stage1" / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def setting(base, tmp_path):
    """Make the setting of some flags."""

    def make(*flags):
        options = ["--base", str(base), "--output", str(tmp_path / "out"), *flags]
        return make_setting(program.parse_arguments(options))

    return make


@pytest.fixture
def torchrun(tmp_path):
    """A torchrun that only writes down its arguments."""
    path = tmp_path / "bin" / "torchrun"
    path.parent.mkdir()
    path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def test_one_thing_changes_at_a_time(setting):
    names = [run.name for run in ablations(setting())]
    modules = (10, 5, 2, 1)
    assert names == [*(f"{n}_boost" for n in modules), *(f"{n}_boost_kl" for n in modules), "10_balance", "10_turbo"]
    assert [run.name for run in ablations(setting("--ci"))] == ["2_boost", "1_boost", "2_boost_kl", "1_boost_kl"]
    chosen = ablations(setting("--modules", "3", "3", "--schedules", "turbo", "turbo", "--kl-weight", "0.5"))
    assert [(run.num_modules, run.schedule, run.kl_weight) for run in chosen] == [
        (3, "boost", 0.0),
        (3, "boost", 0.5),
        (3, "turbo", 0.0),
    ]


def test_options_follow_with_all_modules_and_begin_with_their_first_stage(setting, base):
    (base / "corpus" / "stage1.yaml").write_text("dataset: {}\n")
    chosen = setting("--modules", "10", "--schedules", "boost", "--kl-weight", "0", "--options", "all")
    runs = ablations(chosen)
    assert [run.name for run in runs] == ["10_boost", *(f"10_boost_{option}" for option in program.OPTIONS)]
    steps = {step.name: step for step in plan_steps(chosen, runs)}
    assert len(steps) == 4 * len(runs) + 1 + 1  # alignment begins one stage earlier, and the report
    for option, choice in program.OPTIONS.items():
        names = [name for name in steps if name.split("_stage")[0].endswith(option) and "stage" in name]
        assert len(names) == 5 - choice.first_stage
        for name in names:
            for flag, value in choice.flags.items():
                place = steps[name].command.index(f"--{flag}")
                assert steps[name].command[place + 1] == str(value)
    starts = {name: steps[name].environment["MODEL_NAME_OR_PATH"] for name in steps if "stage2" in name}
    assert starts["1_boost_alignment_stage2"] == str(chosen.output / "0_boost_alignment_stage1")
    assert starts["1_boost_stage2"] == starts["1_boost_curriculum_stage2"] == str(chosen.first_stage)


def test_every_stage_starts_from_an_earlier_one_and_is_trained_once(setting, base):
    steps = plan_steps(setting(), ablations(setting()))
    assert len({step.name for step in steps}) == len({step.product for step in steps}) == len(steps)
    assert len(steps) == 4 + 3 * 10 + 1  # stage 2 of four kinds, the rest of ten runs, the report
    there = {str(base / "stage1")}
    for step in steps:
        if step.environment:
            assert step.environment["MODEL_NAME_OR_PATH"] in there
        elif "--model" in step.command:
            assert step.command[step.command.index("--model") + 1] in there
        there.add(str(step.product.parent))


@pytest.mark.parametrize("variant", ["glm4voice", "plus"])
def test_the_programs_accept_their_commands(setting, variant, torchrun):
    flags = ["--ci", "--schedules", "boost", "turbo", "--audio-decoder-path", "my_decoder", "--extra-args", "--seed 7"]
    chosen = setting("--variant", variant, *flags)
    steps = prepare(chosen, fresh=False)
    seen = []
    for step in steps:
        if step.environment:
            variables = os.environ | dict(step.environment) | {"PATH": f"{torchrun.parent}:{os.environ['PATH']}"}
            variables |= {"CUDA_VISIBLE_DEVICES": "", "DEEPSPEED_CONFIG": "none"}
            result = subprocess.run(step.command, env=variables, cwd=program.ROOT, capture_output=True, text=True)
            lines = result.stdout.splitlines()
            flags = lines[lines.index(str(program.ROOT / "tools" / "finetune_sts.py")) + 1 :]
            place = flags.index("--ddp_backend")
            model, _, training = parse_arguments(flags[:place] + flags[place + 2 :])
            name = str(step.product.parent.relative_to(chosen.output))
            config = read_stage_config(model.config_name)
            check_configs(config, read_stage_config(chosen.first_stage), ("new", "old"))
            assert config.num_backbone_layers == 3 and training.seed == 7
            assert config.num_nextn_predict_layers == int(name.split("_")[0])
            assert model.plan.ratio == MODES[name.replace("/", "_").split("_")[1]]
            assert model.mtp_kl_weight == (1.0 if "_kl" in name else 0.0)
            assert model.language_model_freeze == (not name.endswith("stage4"))
            assert model.audio_tokenizer_type == VARIANTS[variant].audio_tokenizer_type
        elif step.name == "report":
            assert report.parse_arguments(step.command[3:]).folder == chosen.output
        else:
            options = evaluation.parse_arguments(step.command[3:])
            assert options.output / "results.json" == step.product and options.audio_decoder_path == "my_decoder"
            seen += options.modes
    assert seen == ["boost", "vanilla", "boost", "boost", "boost", "turbo"]


def test_the_plan_names_what_the_steps_leave(setting):
    chosen = setting()
    products = {str(step.product.parent.relative_to(chosen.output)) for step in prepare(chosen, fresh=False)}
    rows = json.loads((chosen.output / "plan.json").read_text())["runs"]
    assert len(rows) == 10 and {path for row in rows for path in (row["evaluation"], row["training"])} <= products


def test_folders_that_do_not_fit_are_refused(base, setting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "run_steps", lambda *_: pytest.fail("nothing may run"))
    monkeypatch.chdir(tmp_path)  # the program changes it; put back after the test
    prepare(setting(), fresh=False)
    options = ["--base", str(base), "--output", str(tmp_path / "out")]

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "run scripts/quickstart.sh, or give --base" in refused("--base", str(tmp_path / "none"), *options[2:])
    assert "other settings (kl_weight); start over with --fresh" in refused(*options, "--kl-weight", "2")
    (base / "stage1" / "model.safetensors").write_bytes(b"others")
    assert "other settings (weights)" in refused(*options)
    (tmp_path / "file").touch()
    assert "--output must be a folder, got the file" in refused(*options, "--output", str(tmp_path / "file"))
    for flags in (["--kl-weight", "-1"], ["--options", "none"], ["--modules", "0"], ["--schedules", "vanilla"]):
        with pytest.raises(SystemExit):
            program.parse_arguments(flags)

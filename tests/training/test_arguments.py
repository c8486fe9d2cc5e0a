import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available

from vita_audio.interleave import InterleavePlan
from vita_audio.training.arguments import argument_values, parse_arguments, trainer_flags

ROOT = Path(__file__).parents[2]


@pytest.fixture
def flags(tmp_path):
    """Make the least that a run needs, with changes; None leaves a flag out."""
    data = tmp_path / "data.yaml"
    data.write_text("dataset: {}\n", encoding="utf-8")

    def make(**changes):
        values = {
            "model_name_or_path": "model",
            "dataset_name": data,
            "output_dir": tmp_path,
            "use_cpu": True,
        } | changes
        return {name: value for name, value in values.items() if value is not None}

    return make


def to_argv(values):
    return [part for name, value in values.items() for part in (f"--{name}", *str(value).split())]


def test_defaults_send_nothing_to_other_machines(flags):
    model, data, training = parse_arguments(to_argv(flags()))
    assert training.report_to == ["tensorboard"] * is_tensorboard_available() and not training.push_to_hub
    assert model.plan == InterleavePlan.parse("boost")
    assert (data.user_audio_loss_weight, training.mtp_model_lr_mult) == (0.0, 1.0)


def test_json_file_equals_flags(flags, tmp_path):
    values = flags(learning_rate=3e-4, language_model_freeze=True, text_audio_interval_ratio="1 4 3 8 4 10")
    file = tmp_path / "arguments.json"
    ratio = [int(number) for number in values["text_audio_interval_ratio"].split()]
    content = {**values, "text_audio_interval_ratio": ratio}
    file.write_text(json.dumps(content, default=str), encoding="utf-8")
    from_file, from_flags = parse_arguments([str(file)]), parse_arguments(to_argv(values))
    assert argument_values(from_file) == argument_values(from_flags)
    assert from_file[0].plan.ratio == (1, 4, 3, 8, 4, 10)


def test_later_flags_win(flags):
    argv = to_argv(flags(learning_rate=1.0, text_audio_interval_ratio="1 10 4 10"))
    argv += ["--learning_rate", "2.0", "--text_audio_interval_ratio", "1", "4"]
    model, _, training = parse_arguments(argv)
    assert (training.learning_rate, model.plan.ratio) == (2.0, (1, 4))


def test_changed_values_are_those_that_were_given(flags):
    arguments = parse_arguments(to_argv(flags(mtp_model_lr_mult=10.0, hub_token="secret")))
    changed = argument_values(arguments, changed_only=True)
    assert changed["mtp_model_lr_mult"] == 10.0
    assert changed["model_name_or_path"] == "model"
    assert "learning_rate" not in changed and "text_audio_interval_ratio" not in changed
    assert "secret" not in json.dumps(argument_values(arguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": None}, "--model_name_or_path"),
        ({"model_name_or_path": None, "config_name": "config"}, "--tokenizer_name"),
        ({"dataset_name": None}, "--dataset_name"),
        ({"dataset_name": "missing.yaml"}, "missing.yaml"),
        ({"output_dir": None}, "--output_dir"),
        ({"text_audio_interval_ratio": "1 10 4"}, "even number"),
        ({"audio_input": "user"}, "audio input must be pairs such as user=continuous, got 'user'"),
        ({"text_audio_interval_ratio": "8192 0"}, "at least 3"),
        ({"model_max_length": 1}, "--model_max_length must be at least 2, got 1"),
        ({"mtp_loss_weight": -1}, "--mtp_loss_weight must be 0 or more"),
        ({"mtp_kl_weight": -1}, "--mtp_kl_weight must be 0 or more"),
        (
            {"mtp_depth_weights": "0.8 fast"},
            "--mtp_depth_weights must be numbers, 0 or more, or vocalnet, got 0.8 fast",
        ),
        ({"mtp_depth_weights": "-1"}, "--mtp_depth_weights must be numbers"),
        ({"alignment_weight": -1}, "--alignment_weight must be 0 or more"),
        ({"mtp_coordinator_weight": -1}, "--mtp_coordinator_weight must be 0 or more"),
        ({"curriculum_length": 1}, "--curriculum_length must be at least 2, got 1"),
        ({"curriculum_ratio": 0}, r"--curriculum_ratio must be in \(0, 1\], got 0"),
        ({"num_gpus": 0}, "--num_gpus must be at least 1, got 0"),
        ({"mtp_acceptance": 1.5}, "--mtp_acceptance must be from 0 to 1, got 1.5"),
        ({"mtp_model_lr_mult": 0}, "--mtp_model_lr_mult must be positive"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor must be 0, got 0.1"),
        ({"log_main_loss": 0}, "--log_main_loss must be at least 1"),
        ({"user_audio_loss_weight": -0.5}, "--user_audio_loss_weight must be 0 or more"),
    ],
)
def test_wrong_values_are_named(flags, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_arguments(to_argv(flags(**changes)))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat", "1"], "unknown arguments: --learning_rat 1; see --help"),
        (["--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        (["--model_max_length", "long"], "argument --model_max_length/--model-max-length: invalid int value: 'long'"),
        (["--bf16", "perhaps"], "Truthy value expected"),
    ],
)
def test_wrong_flags_are_one_line(flags, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        parse_arguments([*to_argv(flags()), *argv])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1


def test_unknown_keys_of_a_file_are_refused(flags, tmp_path):
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps({**flags(), "learning_rat": 1}, default=str), encoding="utf-8")
    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments([str(file)])


def test_flags_read_from_the_source_are_those_of_the_trainer():
    parsers = [HfArgumentParser(kind) for kind in (trainer_flags(), TrainingArguments)]
    read, real = ({action.option_strings[0]: action for action in parser._actions} for parser in parsers)
    assert read.keys() == real.keys() and len(real) > 100
    for name, action in real.items():
        assert read[name].option_strings == action.option_strings, name
        assert read[name].nargs == action.nargs or (read[name].nargs == "+" and action.nargs is None), name
        assert read[name].help in (action.help, ""), name
        assert read[name].type in (action.type, str), name


@pytest.mark.parametrize(
    "argv", [["--help"], ["--learning_rat", "1"], ["--output_dir", "x", "--model_max_length", "1"]]
)
def test_the_program_answers_without_torch(argv):
    """Importing torch and the Trainer takes seconds, which nobody should wait for a list of flags."""
    command = [sys.executable, "-X", "importtime", "tools/finetune_sts.py", *argv]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", result.stderr, re.MULTILINE))
    assert "argparse" in imported and not imported & {"torch", "datasets", "tokenizers", "vita_audio.models"}
    if argv == ["--help"]:
        assert "--learning_rate" in result.stdout and "--text_audio_interval_ratio" in result.stdout

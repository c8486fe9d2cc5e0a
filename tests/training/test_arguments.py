import json

import pytest

from vita_audio.interleave import InterleavePlan
from vita_audio.training.arguments import argument_values, parse_arguments


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


def test_defaults_send_nothing_anywhere(flags):
    model, data, training = parse_arguments(to_argv(flags()))
    assert training.report_to == [] and not training.push_to_hub
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
        ({"text_audio_interval_ratio": "8192 0"}, "at least 3"),
        ({"model_max_length": 1}, "--model_max_length must be at least 2, got 1"),
        ({"mtp_loss_weight": -1}, "--mtp_loss_weight must be 0 or more"),
        ({"mtp_kl_weight": -1}, "--mtp_kl_weight must be 0 or more"),
        ({"mtp_model_lr_mult": 0}, "--mtp_model_lr_mult must be positive"),
        ({"log_main_loss": 0}, "--log_main_loss must be at least 1"),
        ({"user_audio_loss_weight": -0.5}, "--user_audio_loss_weight must be 0 or more"),
    ],
)
def test_wrong_values_are_named(flags, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_arguments(to_argv(flags(**changes)))


def test_unknown_flags_are_refused(flags, capsys):
    with pytest.raises((SystemExit, ValueError)) as error:
        parse_arguments([*to_argv(flags()), "--learning_rat", "1"])
    assert "learning_rat" in capsys.readouterr().err + str(error.value)

"""What command lines share: checks of values, defaults in the help, one line for wrong arguments."""

from pathlib import Path

import pytest

from vita_audio.command_line import (
    OneLineParser,
    add_adapter_option,
    add_decoding_options,
    check_files,
    chosen_models,
    decoding_options,
    in_range,
    plan_name,
)


@pytest.fixture
def parser() -> OneLineParser:
    parser = OneLineParser("program", "A program.\n\n    with an example\n")
    parser.add_argument("--count", type=in_range(int, minimum=1), default=3, help="how many")
    parser.add_argument("--share", type=in_range(float, above=0, maximum=1), help="of all")
    parser.add_argument("--mode", type=plan_name, default="boost", help="plan (default: the best)")
    parser.add_argument("--fast", action="store_true", help="no waiting")
    parser.add_subparsers().add_parser("part").add_argument("--size", type=in_range(int, minimum=0))
    return parser


def test_values_in_range_are_converted(parser):
    options = parser.parse_args("--count 1 --share 1 --mode 1,10,4,10 part --size 0".split())
    assert (options.count, options.share, options.mode, options.size) == (1, 1.0, "1,10,4,10", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--count 0", "program: argument --count: must be at least 1, got 0"),
        ("--count 1.5", "program: argument --count: invalid literal for int() with base 10: '1.5'"),
        ("--share 0", "program: argument --share: must be above 0 and at most 1, got 0"),
        ("--share 1.5", "program: argument --share: must be above 0 and at most 1, got 1.5"),
        ("--share nan", "program: argument --share: must be above 0 and at most 1, got nan"),
        ("--mode warp", "must be one of vanilla, balance, boost, turbo"),
        ("--mode 1,10,4", "ratio must have an even number of integers"),
        ("part --size -1", "program part: argument --size: must be at least 0, got -1"),
    ],
)
def test_other_values_are_one_line(parser, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments.split())
    written = capsys.readouterr().err
    assert ended.value.code == 2 and message in written
    assert written.count("\n") == 1 and written.endswith("; see --help\n")


def test_help_shows_defaults_and_the_description_as_written(parser):
    shown = parser.format_help()
    assert "how many (default: 3)" in shown and "plan (default: the best)" in shown
    assert "\n    with an example\n" in shown
    assert shown.count("default") == 2


@pytest.fixture
def decode(parser):
    """Read options of decoding; return them as arguments of `SpeechLM`."""
    add_decoding_options(parser)

    def read(arguments: str, *modes: str | None) -> dict:
        return decoding_options(parser, parser.parse_args(arguments.split()), modes)

    return read


def test_options_of_decoding_are_arguments_of_the_model(decode):
    assert decode("", "vanilla") == {}
    given = decode("--acceptance 0.5 --mtp-head audio --first-chunk committed", None)
    assert given == {"acceptance": 0.5, "mtp_head": "audio", "first_chunk": "committed"}
    assert decode("--acceptance 1", "vanilla", "boost") == decode("--acceptance 1", "vanilla", None)
    assert decode("--acceptance 0", "vanilla") == {"acceptance": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--acceptance 1.5", "--acceptance: must be at least 0 and at most 1, got 1.5"),
        ("--acceptance nan", "--acceptance: must be at least 0 and at most 1, got nan"),
        ("--acceptance 0.5", "--acceptance needs a mode with MTP steps, such as boost, got vanilla 2,0"),
        ("--mtp-head text", "--mtp-head: invalid choice: 'text'"),
        ("--first-chunk fast", "--first-chunk: invalid choice: 'fast'"),
    ],
)
def test_wrong_options_of_decoding_are_one_line(decode, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        decode(arguments, "vanilla", "2,0")
    written = capsys.readouterr().err
    assert ended.value.code == 2 and message in written and written.count("\n") == 1


def test_the_first_missing_file_is_named(tmp_path):
    check_files(None, Path(__file__))
    with pytest.raises(FileNotFoundError, match="none.wav: no such file"):
        check_files(None, Path(__file__), tmp_path / "none.wav", tmp_path / "other.wav")
    with pytest.raises(FileNotFoundError, match="no such file"):
        check_files(tmp_path)


def test_adapters_have_the_names_of_their_folders_unless_others_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = OneLineParser("program")
    parser.add_argument("--model", default="models/base")
    add_adapter_option(parser, several=True)
    (tmp_path / "a=1").mkdir()

    def models(arguments):
        return chosen_models(parser.parse_args(arguments.split()))

    assert models("") == {"base": None}
    assert models("--adapter runs/one") == {"one": "runs/one"}
    assert models("--adapter x=runs/one") == {"x": "runs/one"}
    several = {"base": None, "x": "runs/one", "two": "owner/two", "three": "r/a=1/three", "a=1": "a=1"}
    assert models("--adapter x=runs/one owner/two --adapter r/a=1/three a=1") == several
    with pytest.raises(ValueError, match="got two twice; give NAME=FOLDER"):
        models("--adapter owner/two runs/two")


def test_a_program_for_one_adapter_takes_one(capsys):
    parser = OneLineParser("program")
    add_adapter_option(parser)
    assert parser.parse_args(["--adapter", "runs/one"]).adapter == [("one", "runs/one")]
    assert parser.parse_args(["--adapter", "runs/a=1"]).adapter == [("a=1", "runs/a=1")]  # names belong to several
    with pytest.raises(SystemExit):
        parser.parse_args(["--adapter", "one", "two"])
    assert "unrecognized arguments: two" in capsys.readouterr().err

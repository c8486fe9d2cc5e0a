"""Evaluation of checkpoints while training: with the real program once, and with one that fails in many ways."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from toy_run import ROOT, logged, run_stage

from evaluation import run
from tools.finetune_sts import main as train
from vita_audio.training import checkpoint_evaluation
from vita_audio.training.arguments import SpeechOptions
from vita_audio.training.checkpoint_evaluation import check_evaluation, evaluation_command, read_metrics
from vita_audio.training.curves import draw_run
from vita_audio.training.run_folder import RESULTS_FILE

# Writes down the step and what it was started with; does what a file beside it says for this step.
PROGRAM = """
import json, os, pathlib, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
here = pathlib.Path(__file__).parent
if "--check" in sys.argv:
    sys.exit("no such suite: nonsense" if arguments["--suite"] == "nonsense" else 0)
model, output = pathlib.Path(arguments["--model"]), pathlib.Path(arguments["--output"])
assert (model / "model.safetensors").exists() and (model / "config.json").exists()
assert not [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")]
step = int(model.name.split("-")[1])
with open(here / "calls", "a") as calls:
    calls.write(f"{step}\\n")
todo = json.loads((here / "todo.json").read_text()).get(str(step), "")
if todo == "fail":
    print("weights were read")
    sys.exit("out of memory")
if todo == "hang":
    time.sleep(600)
row = {"benchmark": "toy", "mode": "boost", "status": "done", "note": ""}
value = {"value": 1 / step, "low": 0.5 / step, "high": 2 / step, "is_share": True}
broken = {"benchmark": "other", "mode": "-", "status": "failed", "note": "no judge", "figures": {}}
results = [row | {"figures": {"wer": value, "wer_reference": value, "mos": value | {"is_share": False}}}]
results = {"results": results + [broken] * (todo == "part")}
(output / "results.json").write_text("{" if todo == "damage" else json.dumps(results))
"""


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Put the program above in place of the real one; return what starts a run and reads the steps it evaluated."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "evaluate.py").write_text(PROGRAM)
    (folder / "todo.json").write_text("{}")
    (folder / "calls").touch()
    monkeypatch.setattr(checkpoint_evaluation, "PROGRAM", [sys.executable, str(folder / "evaluate.py")])
    monkeypatch.setenv("WORLD_SIZE", "1")
    return folder


@pytest.fixture
def start(toy_run, program, tmp_path):
    def train_and_evaluate(todo=None, **changes):
        (program / "todo.json").write_text(json.dumps(todo or {}))
        options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "eval_suite": "demo"} | changes
        train(toy_run.flags(tmp_path / "run", extract_codes=True, **options))
        return tmp_path / "run"

    return train_and_evaluate


def quality(folder):
    return json.loads((folder / "quality.json").read_text())


def steps_called(program):
    return list(map(int, (program / "calls").read_text().split()))


def test_every_checkpoint_is_evaluated_and_drawn(start, program):
    folder = start()
    assert steps_called(program) == [1, 2, 3]
    metrics = quality(folder)["metrics"]
    assert [(row["step"], row["toy wer"]["value"]) for row in metrics] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert quality(folder)["failures"] == []
    assert all(set(row) == {"step", "toy wer"} for row in metrics)  # neither public rules nor what is no share
    results = json.loads((folder / RESULTS_FILE).read_text())
    assert results["quality"] == {"last": metrics[-1], "num_failed": 0}
    width = Image.open(folder / "curves.png").size[0]
    (folder / "quality.json").unlink()
    draw_run(folder, json.loads((folder / "trainer_state.json").read_text())["log_history"])
    assert Image.open(folder / "curves.png").size[0] < width  # without the panel


def test_a_failing_evaluation_costs_its_metrics_and_nothing_else(start, caplog):
    folder = start({1: "fail", 2: "part", 3: "damage"})
    assert len(logged(folder)) == 3
    found = quality(folder)
    assert [row["step"] for row in found["metrics"]] == [2]
    reasons = ("exit code 1: out of memory", "other failed: no judge", "results.json is damaged")
    for step, (row, reason) in enumerate(zip(found["failures"], reasons, strict=True), start=1):
        assert row["step"] == step and reason in row["reason"]
        assert f"the evaluation of step {step} failed: {row['reason']}" in caplog.text
    assert json.loads((folder / RESULTS_FILE).read_text())["quality"]["num_failed"] == 3
    assert "3 evaluations failed" in caplog.text


def test_one_that_hangs_is_ended(start):
    folder = start({1: "hang"}, max_steps=1, eval_minutes=0.01)
    assert quality(folder)["metrics"] == [] and len(logged(folder)) == 1
    assert "not done after 0.01 minutes" in quality(folder)["failures"][0]["reason"]
    assert json.loads((folder / RESULTS_FILE).read_text())["quality"] == {"last": None, "num_failed": 1}


def test_a_program_that_does_not_start_does_not_end_the_training(start, monkeypatch):
    monkeypatch.setattr(checkpoint_evaluation, "PROGRAM", ["/nowhere/python"])
    monkeypatch.setattr("vita_audio.training.stage.check_evaluation", lambda command: None)
    folder = start(max_steps=1)
    assert len(logged(folder)) == 1
    assert [row["step"] for row in quality(folder)["failures"]] == [1]
    assert "/nowhere/python" in quality(folder)["failures"][0]["reason"]


def test_a_run_killed_while_evaluating_evaluates_that_checkpoint_when_it_continues(start, program):
    folder = start(max_steps=2)
    before = quality(folder)
    for name in (RESULTS_FILE, "evaluation/step-1/results.json"):
        (folder / name).unlink()
    for name in ("checkpoint-2", "evaluation/step-2"):
        shutil.rmtree(folder / name)
    start(max_steps=2)
    assert steps_called(program) == [1, 2, 1, 2]
    assert quality(folder) == before


def test_a_new_run_in_the_folder_forgets_the_metrics_of_the_old_one(start, program):
    start(max_steps=2)
    folder = start(overwrite_output_dir=True, max_steps=1)
    assert [row["step"] for row in quality(folder)["metrics"]] == [1]


def test_what_cannot_work_is_said_before_the_training(start, capsys):
    for changes, message in (
        ({"eval_suite": "nonsense"}, "--eval_suite: no such suite: nonsense"),
        ({"save_strategy": "no"}, "--eval_suite evaluates checkpoints, which --save_strategy no does not write"),
        ({"eval_minutes": 400}, "--eval_minutes must be above 0 and shorter than --ddp_timeout"),
        ({"eval_options": "device"}, "--eval_options must be NAME=VALUE, got device"),
    ):
        with pytest.raises(SystemExit):
            start(**changes)
        assert message in capsys.readouterr().err


def test_modes_are_named_when_there_are_several():
    value = {"value": 0.5, "low": 0.0, "high": 1.0}
    rows = [
        {"benchmark": "b", "mode": mode, "figures": {"wer": value | {"is_share": True}}}
        for mode in ("boost", "vanilla", "original")
    ]
    assert read_metrics({"results": rows}) == {"b wer boost": value, "b wer vanilla": value}
    assert read_metrics({"results": rows[:1]}) == {"b wer": value}


def test_the_real_program_takes_the_command(toy_run, tmp_path):
    options = SpeechOptions(
        output_dir=str(tmp_path),
        eval_suite=["demo", "librispeech-test-clean"],
        eval_corpus="corpus",
        eval_data="data",
        eval_limit=7,
        eval_options=["judge=en=whisper:tiny", "judge=zh=paraformer_zh", "modes=vanilla", "dtype=float32"],
    )
    command = evaluation_command(toy_run.settings(), options)
    assert command[:3] == [sys.executable, "-m", "evaluation.run"]
    parsed = run.parse_arguments([*command[3:], "--model", "checkpoint", "--output", "out", "--check"])
    assert (parsed.suite, parsed.corpus, parsed.data) == (
        ["demo", "librispeech-test-clean"],
        Path("corpus"),
        Path("data"),
    )
    assert (parsed.judge, parsed.limit) == (run.DEFAULT_JUDGES | {"en": "whisper:tiny"}, {"every": 7})
    assert (parsed.modes, parsed.dtype) == (["vanilla"], "float32")
    assert parsed.audio_tokenizer_path == str(toy_run.audio_tokenizer)


def test_the_real_program_starts_in_any_folder(toy_run, tmp_path, monkeypatch):
    """Paths count from the folder where the training was started; names that are no paths stay as they are."""
    monkeypatch.chdir(tmp_path)
    for name in ("corpus", "demo-asr", "glm4voice"):
        Path(name).mkdir()
    options = SpeechOptions("out", eval_suite=["demo-asr"], eval_corpus="corpus", eval_options=["audio-decoder-path=x"])
    command = evaluation_command(toy_run.settings(), options)
    values = dict(zip(command[3::2], command[4::2], strict=True))
    assert (values["--suite"], values["--audio-tokenizer-type"]) == ("demo-asr", "glm4voice")
    assert (values["--corpus"], values["--audio-decoder-path"]) == (str(tmp_path / "corpus"), "x")
    with pytest.raises(ValueError, match=f"--eval_suite: .*no {tmp_path}/corpus/heldout_asr.jsonl"):
        check_evaluation(command)


def test_an_installation_without_the_evaluation_is_named(toy_run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_evaluation, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=f"needs the folder evaluation .*got {tmp_path}; train from a clone"):
        check_evaluation(evaluation_command(toy_run.settings(), SpeechOptions("out", eval_suite=["demo"])))


@pytest.mark.slow
def test_checkpoints_of_several_processes_are_evaluated(toy_run, tmp_path):
    """With ZeRO-3, whose processes hold a part of the weights each; the last checkpoint is the model at the end."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    row = {"id": "first", "task": "asr", "audio": str(toy_run.folder / "audio" / "1.wav"), "reference": "one two"}
    (corpus / "heldout_asr.jsonl").write_text(json.dumps(row) + "\n")
    decoder = toy_run.folder / "decoder"
    flags = "--max_steps 2 --save_steps 1 --extract_codes true --eval_suite demo-asr --eval_options max-new-tokens=8"
    paths = ["--eval_corpus", corpus, "--output_dir", tmp_path / "run"]
    variables = {"NPROC_PER_NODE": 2, "DEEPSPEED_CONFIG": ROOT / "scripts" / "deepspeed" / "ds_config_zero3.json"}
    arguments = [128, "run", *flags.split(), f"audio-decoder-path={decoder}", *paths]
    result = run_stage("finetune_glm4voice_stage1.sh", toy_run, *arguments, **variables)
    assert result.returncode == 0, result.stderr
    found = quality(tmp_path / "run")
    assert [row["step"] for row in found["metrics"]] == [1, 2] and found["failures"] == []
    options = ["--suite", "demo-asr", "--model", tmp_path / "run", "--output", tmp_path / "out", "--corpus", corpus]
    options += ["--audio-tokenizer-path", toy_run.audio_tokenizer, "--audio-decoder-path", decoder]
    assert run.main([*map(str, options), "--max-new-tokens", "8"]) == 0
    metrics = read_metrics(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert metrics == {name: value for name, value in found["metrics"][-1].items() if name != "step"}

"""The quick start: commands that their programs accept, marks, continuing, and folders that are not its own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import evaluate_codec
from evaluation import run as evaluation
from evaluation.suites import SUITES, get_benchmarks
from tools import extract_audio_codes
from tools.codec import train_encoder
from tools.demo import hearing, quickstart
from tools.demo import report as demo_report
from tools.demo.plan import ROOT, TEXT_MODEL, VARIANTS, Run, Step, plan_steps
from tools.demo.quickstart import print_result
from tools.demo.steps import MARK, Progress, open_folder, run_steps
from vita_audio.command_line import DEFAULT_MODEL
from vita_audio.interleave import MODES
from vita_audio.serve.demo import load_demo
from vita_audio.training.arguments import parse_arguments

FORMS = VARIANTS["glm4voice"].forms
STAGE_NAMES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(params=["glm4voice", "plus"])
def run(request, tmp_path) -> Run:
    variant = VARIANTS[request.param]
    return Run(variant, variant.forms["quick"], tmp_path / "out", "my_tokenizer", "my_decoder")


@pytest.fixture
def ci_run(tmp_path) -> Run:
    return Run(VARIANTS["glm4voice"], FORMS["ci"], tmp_path)


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def write_line(name: str, folder: Path, text: str, *, fails: bool = False) -> Step:
    """A step whose command appends a line to its product, and may fail after that."""
    product = folder / name
    code = f"open({str(product)!r}, 'a').write({text!r} + '\\n'); raise SystemExit({int(fails)})"
    return Step(name, name, product, [sys.executable, "-c", code])


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, one in VARIANTS.items() for form in one.forms])
def test_every_form_has_all_steps_and_an_outlook_for_them(name, form, tmp_path):
    variant = VARIANTS[name]
    steps = plan_steps(Run(variant, variant.forms[form], tmp_path))
    encoder = ["encoder"] if name == "plus" else []
    more = ["outside", "hearing"] if form == "demo" else []
    names = ["corpus", "codes", *encoder, *STAGE_NAMES, "evaluation", "codec", "report", *more]
    if variant.language:
        before = ["corpus", "corpus_language", "check_language", "text_tokenizer", "text_model", "codes"]
        names = [*before, *STAGE_NAMES, "evaluation_language", "codec_language"]
    assert [step.name for step in steps] == names
    assert set(variant.forms[form].minutes) == {step.name for step in steps} - {"report"}
    assert (ROOT / TEXT_MODEL / "config.json").is_file()


def test_no_two_runs_share_a_folder_and_the_default_model_is_the_quick_starts():
    forms = [(variant, form) for variant in VARIANTS.values() for form in variant.forms.values()]
    assert len({form.folder for _, form in forms}) == len(forms) == 11
    assert DEFAULT_MODEL in {Run(variant, form, Path(form.folder)).model for variant, form in forms}


def test_each_stage_starts_from_the_one_before(run):
    steps = by_name(plan_steps(run))
    starts = [steps[name].environment["MODEL_NAME_OR_PATH"] for name in STAGE_NAMES]
    assert starts == [str(TEXT_MODEL), *(str(run.folder / name) for name in STAGE_NAMES[:-1])]
    assert steps["evaluation"].command[steps["evaluation"].command.index("--model") + 1] == str(run.folder / "stage4")


def test_the_first_plus_stage_takes_the_encoder_of_the_step_before_trained_on_training_speech(tmp_path):
    plus = VARIANTS["plus"]
    steps = by_name(plan_steps(Run(plus, plus.forms["quick"], tmp_path)))
    options = train_encoder.parse_arguments(steps["encoder"].command[3:])
    assert options.data == tmp_path / "corpus" / "asr.jsonl" and options.corpus is None
    assert str(options.config) == steps["stage1"].environment["CONFIG_NAME"]
    assert options.tokenizer == steps["stage1"].environment["MODEL_NAME_OR_PATH"]
    assert options.steps == plus.forms["quick"].encoder_steps
    folders = [step.environment.get("AUDIO_MODEL_NAME_OR_PATH") for step in steps.values()]
    folder = options.output / "encoder"
    assert folders == [str(folder) if name == "stage1" else None for name in steps]
    assert steps["encoder"].product.parent == folder


def test_stage_scripts_get_what_the_training_program_accepts(run, tmp_path):
    torchrun = tmp_path / "bin" / "torchrun"
    torchrun.parent.mkdir()
    torchrun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    torchrun.chmod(0o755)
    run.corpus.mkdir(parents=True)
    hears_codes, steps = run.variant is VARIANTS["glm4voice"], by_name(plan_steps(run))
    for number, stage in enumerate(run.variant.stages):
        step = steps[stage.name]
        (run.corpus / stage.data).write_text("dataset: {}\n", encoding="utf-8")
        variables = os.environ | step.environment | {"PATH": f"{torchrun.parent}:{os.environ['PATH']}"}
        variables |= {"CUDA_VISIBLE_DEVICES": "", "DEEPSPEED_CONFIG": "none"}
        result = subprocess.run(step.command, env=variables, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = result.stdout.splitlines()
        flags = lines[lines.index(str(ROOT / "tools" / "finetune_sts.py")) + 1 :]
        place = flags.index("--ddp_backend")
        model, data, training = parse_arguments(flags[:place] + flags[place + 2 :])
        assert training.output_dir == str(run.folder / stage.name)
        assert training.max_steps == run.form.steps[number]
        assert step.product == run.folder / stage.name / "train_results.json"
        assert model.audio_tokenizer_path == "my_tokenizer" and data.audio_code_dir == str(run.codes)
        assert model.language_model_freeze == (stage.name in ("stage2", "stage3"))
        assert data.user_audio_loss_weight == (0.3 if hears_codes and stage.name == "stage1" else 0)
        assert model.audio_tokenizer_type == run.variant.audio_tokenizer_type
        assert model.audio_model_freeze == (not hears_codes)
        assert training.mtp_model_lr_mult == (10 if stage.name == "stage4" else 1)
        config = json.loads((ROOT / model.config_name).read_text(encoding="utf-8"))
        assert config["num_nextn_predict_layers"] == stage.num_modules and ("audio_config" in config) != hears_codes


def test_the_other_programs_accept_their_commands(run):
    steps = by_name(plan_steps(run))
    codes = extract_audio_codes.parse_arguments(steps["codes"].command[2:])
    assert codes.data == [run.corpus / name for name in ("stage1.yaml", "mtp.yaml", "stage4.yaml")]
    assert (codes.codes, codes.audio_tokenizer_path) == (run.codes, "my_tokenizer")
    assert codes.audio_tokenizer_type == run.variant.audio_tokenizer_type
    command = steps["evaluation"].command
    options = evaluation.parse_arguments(command[command.index("evaluation.run") + 1 :])
    assert (options.audio_tokenizer_path, options.audio_decoder_path) == ("my_tokenizer", "my_decoder")
    assert options.limit == {"demo-asr": 60, "demo-tts": 30, "demo-qa": 60} and options.suite == list(options.limit)
    assert (options.modes, options.time_alone) == (list(MODES), {"demo-qa": 8})
    assert options.audio_tokenizer_type == run.variant.audio_tokenizer_type
    assert options.output / "results.json" == steps["evaluation"].product
    codec = evaluate_codec.parse_arguments(steps["codec"].command[3:])
    assert codec.corpora == {"heldout": run.corpus / "heldout_asr.jsonl"} and codec.max_clips == 40
    assert (codec.codes, codec.codes_of) == (run.codes, run.corpus / "stage1.yaml")
    assert (codec.audio_tokenizer_path, codec.audio_decoder_path) == ("my_tokenizer", "my_decoder")
    assert codec.output / "codec.json" == steps["codec"].product
    report = demo_report.parse_arguments(steps["report"].command[3:])
    assert (report.evaluation, report.codec, report.output) == (options.output, codec.output, run.folder)


def test_the_model_in_the_package_has_five_modules_and_is_evaluated_with_other_microphones(tmp_path):
    run = Run(VARIANTS["glm4voice"], FORMS["demo"], tmp_path, "my_tokenizer")
    steps = by_name(plan_steps(run))
    configs = [json.loads((ROOT / steps[name].environment["CONFIG_NAME"]).read_text()) for name in STAGE_NAMES]
    assert [config["num_nextn_predict_layers"] for config in configs] == [0, 1, 5, 5]
    assert {config["num_hidden_layers"] - config["num_nextn_predict_layers"] for config in configs} == {4}
    outside = evaluation.parse_arguments(steps["outside"].command[3:])
    assert get_benchmarks(outside.suite) == list(SUITES["outside"]) and outside.corpus == run.corpus
    asked = hearing.parse_arguments(steps["hearing"].command[3:])
    assert (asked.model, asked.corpus, asked.audio_tokenizer_path) == (run.model, run.corpus, "my_tokenizer")
    assert asked.output / "hearing.json" == steps["hearing"].product


def test_a_form_that_a_variant_lacks_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        quickstart.parse_arguments(["--demo", "--variant", "plus"])
    assert "--demo needs another variant than plus" in capsys.readouterr().err


def test_without_other_weights_no_flag_asks_for_them(ci_run):
    steps = by_name(plan_steps(ci_run))
    flags = {"--audio-tokenizer-path", "--audio-decoder-path"}
    assert not any(flags & set(step.command) for step in steps.values())
    assert steps["stage1"].environment["AUDIO_TOKENIZER_PATH"] == "embedded"
    assert "--note" in steps["report"].command


def test_a_failed_step_stops_the_run_and_the_next_run_continues_with_it(tmp_path, capfd):
    progress = Progress(tmp_path / "done")
    first, third = write_line("first", tmp_path, "1"), write_line("third", tmp_path, "3")
    steps = [first, write_line("second", tmp_path, "2", fails=True), third]
    assert run_steps("quickstart", steps, progress, {"second": 2, "third": 3}) == 1
    written = capfd.readouterr()
    assert "Step 2 of 3: second; about 2 minutes, then 3 for the later steps" in written.out
    assert written.err == "\nquickstart: a step failed, see above; fix it and run the same command to continue\n"
    steps = [first, write_line("second", tmp_path, "2"), third]
    assert not all(map(progress.is_done, steps))
    assert run_steps("quickstart", steps, progress, {}) == 0
    assert (tmp_path / "first").read_text() == "1\n"
    assert (tmp_path / "second").read_text() == "2\n2\n"
    assert all(map(progress.is_done, steps)) and progress.minutes(steps) > 0
    assert run_steps("quickstart", steps, progress, {}) == 0
    assert (tmp_path / "third").read_text() == "3\n"


def test_a_step_whose_product_is_gone_is_not_done(tmp_path):
    progress = Progress(tmp_path / "done")
    step = write_line("only", tmp_path, "1")
    run_steps("quickstart", [step], progress, {})
    step.product.unlink()
    run_steps("quickstart", [step], progress, {})
    assert step.product.read_text() == "1\n"


def test_the_environment_of_a_step_is_added(tmp_path):
    code = "import os; open(os.environ['PLACE'], 'w').write(os.environ['PATH'])"
    step = Step("only", "only", tmp_path / "x", [sys.executable, "-c", code], {"PLACE": str(tmp_path / "x")})
    run_steps("quickstart", [step], Progress(tmp_path / "done"), {})
    assert step.product.read_text() == os.environ["PATH"]


def test_fresh_deletes_only_folders_of_its_own(tmp_path):
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    open_folder(ours, {"steps": [1]}, fresh=False)
    (ours / "model").write_text("weights")
    open_folder(ours, {"steps": [1]}, fresh=False)
    assert (ours / "model").exists()
    with pytest.raises(ValueError, match=r"other settings \(steps\); start over with --fresh"):
        open_folder(ours, {"steps": [2]}, fresh=False)
    open_folder(ours, {"steps": [2]}, fresh=True)
    assert not (ours / "model").exists()
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ValueError, match="holds other files; choose another folder"):
            open_folder(foreign, {}, fresh)
    assert (foreign / "thesis.txt").exists()
    with pytest.raises(NotADirectoryError, match="--output must be a folder, got the file .*thesis.txt"):
        open_folder(foreign / "thesis.txt", {}, fresh=True)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """The folder the user is in; the working folder is put back after the test."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def runs(monkeypatch) -> list[Run]:
    """Runs that the program began; none of their steps is run."""
    seen = []

    def plan_nothing(run: Run) -> list[Step]:
        seen.append(run)
        run.model.mkdir(parents=True, exist_ok=True)
        return []

    monkeypatch.setattr(quickstart, "plan_steps", plan_nothing)
    monkeypatch.setattr(quickstart, "print_result", lambda run, caller: None)
    return seen


@pytest.mark.parametrize("changed", ["speech_tokenizer", "speech_decoder"])
def test_other_weights_than_those_of_a_folder_are_one_line_and_start_over_with_fresh(
    elsewhere, runs, monkeypatch, capsys, changed
):
    weights = {"speech_tokenizer": "tokenizer", "speech_decoder": "decoder"}
    for name, folder in weights.items():
        (elsewhere / folder).mkdir()
        (elsewhere / folder / "model.safetensors").write_text("weights")
        monkeypatch.setenv(f"AUDIO_{name.removeprefix('speech_').upper()}_PATH", folder)

    def start(*more: str) -> int:
        os.chdir(elsewhere)
        return quickstart.main(["--ci", "--output", "out", *more])

    assert start() == start() == 0
    (elsewhere / weights[changed] / "model.safetensors").write_text("other weights")
    with pytest.raises(SystemExit, match="2"):
        start()
    error = capsys.readouterr().err
    assert f"made with other settings ({changed}); start over with --fresh" in error and error.count("\n") == 1
    assert start("--fresh") == start() == 0


def test_the_embedded_weights_are_part_of_the_settings(elsewhere, ci_run, monkeypatch):
    plain = quickstart.fingerprints(ci_run)
    assert set(plain) == {"speech_tokenizer", "speech_decoder", "text_model"} and len(set(plain.values())) == 3
    embedded = replace(ci_run, tokenizer_path="embedded", decoder_path="embedded")
    assert quickstart.fingerprints(embedded) == plain
    monkeypatch.setattr(quickstart, "ASSETS", elsewhere)
    (elsewhere / "speech_decoder").mkdir()
    assert quickstart.fingerprints(ci_run)["speech_decoder"] != plain["speech_decoder"]


def test_paths_count_from_the_folder_of_the_user(elsewhere, runs, monkeypatch):
    (elsewhere / "mine").mkdir()
    monkeypatch.setenv("AUDIO_TOKENIZER_PATH", "mine")
    monkeypatch.setenv("AUDIO_DECODER_PATH", "embedded")
    assert quickstart.main(["--ci", "--output", "../out"]) == 0
    assert Path.cwd() == ROOT
    folder = elsewhere / ".." / "out"
    assert runs == [Run(VARIANTS["glm4voice"], FORMS["ci"], folder, str(elsewhere / "mine"), "embedded")]
    assert (elsewhere.parent / "out" / MARK).is_file()


def test_the_server_learns_what_texts_an_english_model_knows(elsewhere, runs):
    for variant, is_told in (("plus", True), ("spanish", False)):
        assert quickstart.main(["--ci", "--variant", variant, "--output", variant]) == 0
        os.chdir(elsewhere)
        demo = load_demo(runs[-1].model)
        assert (demo.bare_words, demo.system_prompt) == (is_told, not is_told)
        assert demo.max_turns == (1 if is_told else None)


def test_a_folder_of_one_variant_is_not_continued_with_the_other(elsewhere, runs, capsys):
    folder = str(elsewhere / "out")
    assert quickstart.main(["--ci", "--output", folder, "--variant", "plus"]) == 0
    assert runs[0].variant is VARIANTS["plus"]
    with pytest.raises(SystemExit, match="2"):
        quickstart.main(["--ci", "--output", folder])
    assert "stages); start over with --fresh" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_scripts_start_in_any_folder_with_the_environment_named_from_there(elsewhere, script):
    """A finished environment whose Python writes down where it was started and with what."""
    scripts = elsewhere.parent / "repository" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "setup_env.sh").write_text("")
    (scripts / script).write_text((ROOT / "scripts" / script).read_text())
    python = elsewhere / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\necho "$PWD $*"\n')
    python.chmod(0o755)
    command = ["bash", str(scripts / script), "--output", "mine"]
    environment = os.environ | {"VENV": "venv"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    started = {
        "quickstart.sh": f"{scripts.parent} -m tools.demo.quickstart --paths-from {elsewhere} --output mine",
        "test.sh": f"{scripts.parent} -m pytest --output mine",
    }
    assert result.stdout.strip() == started[script]


def test_a_foreign_folder_is_one_line_and_an_exit_code(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="2"):
        quickstart.main(["--ci", "--output", str(tmp_path)])
    assert capsys.readouterr().err.count("\n") == 1


def test_the_end_says_where_things_lie(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))
    run.folder.mkdir()
    answer = {"question_wav": "q.wav", "wav": "a.wav", "text": "paris", "transcript": ""}
    (run.folder / "report.json").write_text(json.dumps({"answer": answer}))
    print_result(run, ROOT)
    lines = capsys.readouterr().out
    assert f"In {ROOT}:" not in lines and "ask more: .venv/bin/python tools/inference_sts.py" in lines
    for text in ("q.wav", "a.wav", "paris", "(nothing)", "report.md", f"--model {run.folder / 'stage4'} --task sts"):
        assert text in lines
    assert lines.rstrip().endswith("--audio-tokenizer-path my_tokenizer --audio-decoder-path my_decoder")
    print_result(run, run.folder)
    assert capsys.readouterr().out.startswith(f"\nIn {ROOT}:\n")

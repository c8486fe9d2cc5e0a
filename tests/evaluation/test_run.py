"""Suites on a toy model: run whole, stopped and continued, with broken samples, with sets that fail or are missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock
from toy_corpus import SENTENCES, LengthJudge, arguments, make_toy_corpus

from evaluation import prepare, run, run_folder
from evaluation.judges import JUDGES
from evaluation.reporting import page
from evaluation.results import PUBLISHED
from evaluation.run_folder import RowFile
from evaluation.suites import BENCHMARKS, draw
from evaluation.tasks import TASKS, Value
from vita_audio.inference.pipeline import SpeechLM

ROOT = Path(__file__).parents[2]
MODES = ("vanilla", "boost")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_toy_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, toy_folders, corpus) -> Path:
    """Output of the demo suite in two modes."""
    output = tmp_path_factory.mktemp("finished") / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
        assert run.main(arguments(toy_folders, corpus, output, "--modes", *MODES)) == 0
    return output


def results(output: Path) -> dict[tuple[str, str], dict]:
    content = json.loads((output / "results.json").read_text())
    return {(row["benchmark"], row["mode"]): row for row in content["results"]}


def answers(output: Path) -> dict[str, dict]:
    """Texts of all answers, by the file they are in."""
    folders = {path.parent for path in output.rglob("answers-*.jsonl")}
    return {
        str(folder.relative_to(output)): {
            name: (row["text"], row["wav"] and Path(row["wav"]).name)
            for name, row in RowFile(folder, "answers").read().items()
        }
        for folder in folders
    }


def fail_to_load(*arguments, **options):
    raise AssertionError("nothing is left to answer")


def test_every_benchmark_is_answered_in_every_mode_with_intervals(finished):
    found = results(finished)
    names = ("demo-asr", "demo-tts", "demo-qa", "demo-qa-text")
    assert set(found) == {(name, mode) for name in names for mode in MODES} | {("demo-tts", "original")}
    for (name, mode), row in found.items():
        assert row["status"] == "done" and row["num_samples"] == (2 if "qa" in name else len(SENTENCES))
        for figure in row["figures"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
        assert (row["judge"] is None) == (name in ("demo-asr", "demo-qa-text"))
        if mode != "original":
            assert (row["speed"]["passes_per_token"]["value"] == 1) == (mode == "vanilla")
    assert set(found["demo-qa", "boost"]["figures"]) == {"accuracy_text", "accuracy_speech", "without_audio"}


def test_modes_are_compared_on_the_same_samples(finished):
    compared = json.loads((finished / "results.json").read_text())["comparisons"]
    assert {(row["benchmark"], row["figure"]) for row in compared} >= {("demo-asr", "wer"), ("demo-tts", "wer")}
    assert all(row["mode"] == "boost" and row["against"] == "vanilla" and 0 < row["p_value"] <= 1 for row in compared)


def test_the_page_needs_nothing_from_elsewhere(finished):
    page = (finished / "results.html").read_text()
    assert "http" not in page and "<script" not in page
    assert page.count('src="data:audio/mpeg') >= 3 and page.count('src="data:image/png') == 1
    assert "3 worst samples" in page and "<del>" in page and "<ins>" in page
    markdown = (finished / "results.md").read_text()
    assert "public rule" not in markdown  # which the demo suite has none of
    assert "| demo-asr | boost | 3 |" in markdown
    assert markdown.index("(chart.png)") < markdown.index("## Recognition")
    assert page.index("data:image/png") < page.index("<table>")
    assert "recordings, transcribed by length" in markdown and "* commit: " in markdown


def test_audio_that_does_not_fit_into_the_page_is_linked_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_EMBEDDED_BYTES", 0)
    soundfile.write(tmp_path / "a%2Fb #1.wav", [0.1] * 2400, 24_000)
    assert 'src="a%252Fb%20%231.wav"' in page.Clips(tmp_path).player(tmp_path / "a%2Fb #1.wav")


def test_the_mp3_encoder_of_a_page_gets_samples_in_range_only(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "loud.wav", np.linspace(-4, 4, 1600), 16_000, subtype="FLOAT")
    encode, ranges = soundfile.write, []

    def watch(file, wave, *args, **options):
        ranges.append((wave.min(), wave.max()))
        return encode(file, wave, *args, **options)

    monkeypatch.setattr(soundfile, "write", watch)
    page.Clips(tmp_path).player(tmp_path / "loud.wav")
    assert ranges == [(-1, 1)]


def test_large_numbers_are_whole_and_small_ones_have_three_digits():
    assert str(Value(1274.2, 99.96, 1340, is_share=False)) == "1274 (100 to 1340)"
    assert str(Value(0.1584, 0.15, 0.2, is_share=False)) == "0.158 (0.15 to 0.2)"
    assert str(Value(0.1584, 0.15, 0.2, is_share=True)) == "15.8 % (15.0 to 20.0)"


def test_a_finished_evaluation_is_only_reported_again(finished, toy_folders, corpus, monkeypatch):
    before = answers(finished)
    monkeypatch.setattr(run, "load_models", fail_to_load)
    monkeypatch.setitem(JUDGES, "length", fail_to_load)
    (finished / "results.json").unlink()
    assert run.main(arguments(toy_folders, corpus, finished, "--modes", *MODES)) == 0
    assert answers(finished) == before and len(results(finished)) == 9


def test_a_stopped_evaluation_continues_where_it_was(finished, toy_folders, corpus, tmp_path, monkeypatch):
    """Killed in the second batch of synthesis, when half a line was written."""
    answered, respond = [], SpeechLM.respond_batch

    def respond_and_stop(self, conversations, *rest, **options):
        answered.extend(conversations)
        if stop and len(answered) > len(SENTENCES) + 2:
            raise KeyboardInterrupt
        return respond(self, conversations, *rest, **options)

    monkeypatch.setattr(SpeechLM, "respond_batch", respond_and_stop)
    options = arguments(toy_folders, corpus, tmp_path, "--modes", "boost")
    stop = True
    with pytest.raises(KeyboardInterrupt):
        run.main(options)
    file = tmp_path / "boost" / "demo-tts" / "answers-0.jsonl"
    assert len(file.read_text().splitlines()) == 2
    with file.open("a") as lines:
        lines.write('{"id": "tts-2", "te')
    stop, answered[:] = False, []
    assert run.main(options) == 0
    assert len(answered) == 1 + 2 + 2  # the third text, spoken questions, questions as text
    everything = answers(finished)
    assert answers(tmp_path) == {name: rows for name, rows in everything.items() if not name.startswith("vanilla")}


@pytest.mark.parametrize(
    "option, value", [("--max-new-tokens", "9"), ("--seed", "1"), ("--judge", "en=other"), ("--limit", "demo-asr=2")]
)
def test_a_changed_setting_is_refused(finished, toy_folders, corpus, option, value):
    options = arguments(toy_folders, corpus, finished, option, value)
    name = option.removeprefix("--").replace("-", "_")
    with pytest.raises(ValueError, match=rf"was made with other settings \({name}: .*choose another --output"):
        run.main(options)


def test_a_folder_in_which_another_process_works_is_refused(toy_folders, corpus, tmp_path, monkeypatch):
    """As when torchrun was killed and its processes were not."""
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT_SECONDS", 0.1)
    options = arguments(toy_folders, corpus, tmp_path, "--modes", "boost", suite="demo-asr")
    with FileLock(tmp_path / ".process-0.lock"):
        with pytest.raises(ValueError, match="another evaluation works in .*wait until it is done, stop it"):
            run.main(options)
        assert not list(tmp_path.rglob("*.jsonl"))
    assert run.main(options) == 0


def test_a_folder_is_free_again_after_an_error(tmp_path):
    processes = run_folder.Processes()
    with pytest.raises(RuntimeError), processes.claim(tmp_path):
        raise RuntimeError
    with FileLock(tmp_path / ".process-0.lock", timeout=0):
        pass


def test_a_process_ends_with_the_one_that_started_it():
    child = "import time; from vita_audio.workers import end_with_parent as e; e(); print('ready'); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-uc', {child!r}])"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=ROOT)
    assert started.stdout.readline() == b"ready\n"
    started.kill()
    assert started.stdout.read() == b""  # at the end of the pipe, which both held open


def test_another_model_is_compared_on_the_same_samples(finished, toy_folders, corpus, tmp_path):
    """Here the same model, so that nothing differs; a mode that the other one lacks is named."""
    options = arguments(toy_folders, corpus, tmp_path / "out", "--modes", "boost", "turbo", suite="demo-asr")
    assert run.main([*options, "--against", str(finished)]) == 0
    compared = json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"]
    (row,) = [row for row in compared if row["against"] == f"boost of {toy_folders.model}"]
    assert (row["mode"], row["figure"], row["difference"], row["p_value"]) == ("boost", "wer", 0, 1)
    assert f"| boost less boost of {toy_folders.model} |" in (tmp_path / "out" / "results.md").read_text()
    note = results(tmp_path / "out")["demo-asr", "turbo"]["note"]
    assert note.startswith(f"not compared with {toy_folders.model}, whose turbo is unfinished: 0 of 3")
    text = [*options[:1], "demo-tts", *options[2:]]
    for path in shutil.copytree(finished, tmp_path / "other").rglob("transcripts-*.jsonl"):
        path.write_text(path.read_text().replace('"length"', '"somebody"'))
    assert run.main([*text, "--against", str(tmp_path / "other")]) == 0
    assert "transcribed by somebody" in results(tmp_path / "out")["demo-tts", "boost"]["note"]
    with pytest.raises(FileNotFoundError, match="give the --output of an evaluation"):
        run.main([*options, "--against", str(tmp_path / "nowhere")])


def test_a_broken_sample_is_recorded_and_counts_as_wrong(finished, toy_folders, corpus, tmp_path):
    broken = shutil.copytree(corpus, tmp_path / "corpus")
    (broken / "audio" / "heldout1.flac").write_bytes(b"noise")
    assert run.main(arguments(toy_folders, broken, tmp_path / "out", "--modes", "boost", suite="demo-asr")) == 0
    rows = RowFile(tmp_path / "out" / "boost" / "demo-asr", "answers").read()
    assert [name for name, row in rows.items() if "error" in row] == ["asr-1"]
    assert "heldout1.flac" in rows["asr-1"]["error"]
    others = answers(finished)["boost/demo-asr"]
    assert {name: row["text"] for name, row in rows.items()} == {
        name: "" if name == "asr-1" else text for name, (text, _) in others.items()
    }
    row = results(tmp_path / "out")["demo-asr", "boost"]
    assert row["num_samples"] == 3 and row["num_failed_samples"] == 1 and "count as wrong" in row["note"]
    assert "AudioError" in (tmp_path / "out" / "results.html").read_text()


def test_a_failing_benchmark_and_a_missing_set_do_not_stop_the_others(toy_folders, corpus, tmp_path):
    partial = shutil.copytree(corpus, tmp_path / "corpus")
    (partial / "heldout_qa.jsonl").write_text("{}\n")
    more = ("--modes", "boost", "--data", tmp_path / "nowhere")
    options = arguments(toy_folders, partial, tmp_path / "out", *more, judge="nobody")
    options[1:2] = ["demo", "librispeech-test-clean"]
    assert run.main(options) == 1
    found = {name: row for (name, _), row in results(tmp_path / "out").items()}
    statuses = {name: row["status"] for name, row in found.items()}
    failed = dict.fromkeys(("demo-tts", "demo-qa", "demo-qa-text"), "failed")
    assert statuses == {"demo-asr": "done", "librispeech-test-clean": "missing", **failed}
    assert "got 'nobody'" in found["demo-tts"]["note"] and "KeyError" in found["demo-qa"]["note"]
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    (line,) = [line for line in lines if "librispeech-test-clean" in line]
    assert "missing: no " in line
    assert any(line.startswith("| demo-tts | recordings | - |") for line in lines)


def test_published_figures_stand_beside_ours(toy_folders, corpus, tmp_path):
    sample = prepare.recognition_sample(corpus / "audio" / "heldout1.flac", SENTENCES[1])
    prepare.write_benchmark(tmp_path, "librispeech-test-clean", [sample])
    options = arguments(toy_folders, corpus, tmp_path / "out", "--data", tmp_path, suite="librispeech-test-clean")
    assert run.main([*options, "--modes", "boost"]) == 0
    lines = (tmp_path / "out" / "results.md").read_text().split("## Speed")[0].splitlines()
    header, *rows = [[cell.strip() for cell in line.split("|")] for line in lines if "|" in line]
    values = {row[2]: dict(zip(header, row, strict=False)) for row in rows if row[1] == "librispeech-test-clean"}
    assert values["Kimi-Audio"]["errors"] == "1.28 %" and values["Kimi-Audio"]["errors, public rule"] == ""
    assert values["VITA-Audio-Plus-Vanilla"]["errors, public rule"] == "2 %"
    assert "Kimi-Audio-Evalkit" in values["Kimi-Audio"]["note"] and values["boost"]["samples"] == "1"


def test_published_figures_of_a_model_are_one_row(toy_folders, corpus, tmp_path):
    sample = prepare.question_sample(corpus / "audio" / "heldout1.flac", "which city?", ["Paris"])
    prepare.write_benchmark(tmp_path, "web-questions", [sample])
    options = arguments(toy_folders, corpus, tmp_path / "out", "--data", tmp_path, suite="web-questions")
    assert run.main([*options, "--modes", "boost"]) == 0
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| web-questions | VITA-Audio |")]
    assert "| 45 % |" in line and "| 41.7 % |" in line


def test_published_figures_are_of_our_kinds_and_name_their_source():
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["rows"]
    assert {"wer", "cer_reference", "accuracy_speech_reference"} <= {row["figure"] for row in rows}
    assert len({(row["benchmark"], row["model"], row["figure"], row["source"]) for row in rows}) == len(rows)
    for row in rows:
        benchmark = BENCHMARKS[row["benchmark"]]
        assert row["figure"] in [benchmark.key(figure.name) for figure in TASKS[benchmark.task].metrics]
        assert 0 < row["value"] < 1 and row["model"] and len(row["source"]) > 20


def test_arguments_that_do_not_fit_are_named(toy_folders, corpus, tmp_path, capsys):
    for change, message in (
        (("--suite", "asr"), "suite asr needs --data"),
        (("--judge", "whisper_tiny_en"), "--judge: must be LANGUAGE=NAME"),
        (("--modes", "fast"), "--modes: interleave plan must be one of"),
        (("--batch-size", "0"), "--batch-size: must be at least 1, got 0"),
        (("--limit", "demo-tts=0"), "--limit: must be at least 1, got 0"),
        (("--modes", "vanilla", "--acceptance", "1"), "--acceptance needs a mode with MTP steps"),
    ):
        with pytest.raises(SystemExit):
            run.main(arguments(toy_folders, corpus, tmp_path, *change))
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="suite must be one of .* got .heldout."):
        run.main(arguments(toy_folders, corpus, tmp_path, "--limit", "2", "heldout=1"))


def test_every_benchmark_can_have_its_own_number_of_samples(toy_folders, corpus, tmp_path):
    options = ["--modes", "vanilla", "--limit", "2", "demo-asr=1", "--skip-recordings"]
    assert run.main(arguments(toy_folders, corpus, tmp_path, *options)) == 0
    counts = {key: row["num_samples"] for key, row in results(tmp_path).items()}
    names = {"demo-asr": 1, "demo-tts": 2, "demo-qa": 2, "demo-qa-text": 2}
    assert counts == {(name, "vanilla"): count for name, count in names.items()}
    assert json.loads((tmp_path / "settings.json").read_text())["limit"] == {"every": 2, "demo-asr": 1}


def test_items_are_a_fixed_draw_in_their_order():
    assert draw("abcdefgh", 3) == draw("abcdefgh", 3) == sorted(draw("abcdefgh", 3))
    assert draw("abc", 9) == draw("abc", None) == ["a", "b", "c"]


def test_another_model_in_the_same_folder_is_refused(finished, toy_folders, corpus, tmp_path):
    """Also one that was trained again, which is known by the times of its files."""
    model = shutil.copytree(toy_folders.model, tmp_path / "model")
    options = arguments(toy_folders, corpus, finished)
    options[options.index("--model") + 1] = str(model)
    with pytest.raises(ValueError, match=r"other settings \(model: "):
        run.main(options)
    before = run.parse_arguments(options).settings(model)
    assert json.loads(json.dumps(before)) == before
    (model / "model.safetensors").touch()
    after = run.parse_arguments(options).settings(model)
    assert [name for name in before if before[name] != after[name]] == ["weights"]


def test_weights_of_every_form_are_settings(toy_folders, corpus, tmp_path):
    for name in ("model.safetensors", "pytorch_model-00001-of-00002.bin", "training_args.bin"):
        (tmp_path / name).touch()
    weights = run.parse_arguments(arguments(toy_folders, corpus, tmp_path)).settings(tmp_path)["weights"]
    assert [name for name, _, _ in weights] == ["model.safetensors", "pytorch_model-00001-of-00002.bin"]


def test_the_program_runs_from_anywhere_and_says_in_one_line_what_is_wrong(tmp_path):
    options = ["--suite", "demo", "--model", "nowhere", "--corpus", "corpus", "--output", "output"]
    command = [sys.executable, "-m", "evaluation.run", *options]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("evaluation.run: ") and "nowhere" in last

"""The report of ablations, on two toy runs; and with -m slow all of it, stopped and continued."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from toy_corpus import LengthJudge, arguments, make_toy_corpus

from evaluation import run
from evaluation.judges import JUDGES
from tools.demo import ablation_report as ablations

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_folders) -> Path:
    """Output of two runs with the same answers, the first also by its backbone alone."""
    folder = tmp_path_factory.mktemp("ablations")
    corpus = make_toy_corpus(tmp_path_factory.mktemp("corpus"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
        options = arguments(toy_folders, corpus, folder / "a" / "evaluation", "--modes", "boost", "vanilla")
        assert run.main([*options, "--limit", "2"]) == 0
    shutil.copytree(folder / "a" / "evaluation", folder / "b" / "evaluation")
    shutil.rmtree(folder / "b" / "evaluation" / "vanilla")
    rows = []
    for name, weight, accuracy in (("a", 0.0, 0.25), ("b", 0.5, 0.75)):
        (folder / name / "stage4").mkdir()
        results = {"final_accuracies": {"main": 0.9, "mtp_0": accuracy, "mtp_1": accuracy}}
        (folder / name / "stage4" / "train_results.json").write_text(json.dumps(results))
        paths = {"evaluation": f"{name}/evaluation", "training": f"{name}/stage4"}
        rows.append({"name": name, "num_modules": 2, "schedule": "boost", "kl_weight": weight, "option": ""} | paths)
    (folder / "plan.json").write_text(json.dumps({"runs": rows}))
    return folder


def test_figures_are_those_of_the_evaluations(folder):
    ablations.main(["--folder", str(folder)])
    first, vanilla, second = json.loads((folder / "ablations.json").read_text())["runs"]
    assert [row["name"] for row in (first, vanilla, second)] == ["a", "a, vanilla", "b"]
    assert (first["schedule"], vanilla["schedule"], second["kl_weight"]) == ("boost", "vanilla", 0.5)
    assert (first["module_accuracy"], second["module_accuracy"]) == (0.25, 0.75)
    rows = json.loads((folder / "a" / "evaluation" / "results.json").read_text())["results"]
    found = {(row["benchmark"], row["mode"]): row["figures"] for row in rows}
    titles = {
        "Recognition: errors": ("demo-asr", "wer"),
        "Synthesis: errors heard": ("demo-tts", "wer"),
        "Spoken questions: right, S→T": ("demo-qa", "accuracy_text"),
        "Spoken questions: right, S→S": ("demo-qa", "accuracy_speech"),
        "The same questions as text: right, T→T": ("demo-qa-text", "accuracy"),
    }
    for result, mode in ((first, "boost"), (vanilla, "vanilla"), (second, "boost")):
        assert result["figures"] == {title: found[name, mode][key] for title, (name, key) in titles.items()}
    assert first["speed"]["passes_per_token"] < vanilla["speed"]["passes_per_token"] == 1
    assert first["less_the_first"] == {} and set(vanilla["less_the_first"]) == set(titles)
    assert all(row["difference"] == 0 and row["p_value"] == 1 for row in second["less_the_first"].values())


def test_one_table_and_one_chart_show_all_runs(folder):
    ablations.main(["--folder", str(folder)])
    lines = (folder / "ablations.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| 2 |")]
    assert [(row[1], row[2]) for row in rows] == [("boost", "0"), ("vanilla", "0"), ("boost", "0.5")]
    assert rows[0][3:] != rows[1][3:] and rows[0][3:-1] == rows[2][3:-1]
    assert "## Difference from a, on the same samples" in lines and any(
        line.startswith("| b | Recognition") for line in lines
    )
    width, height = Image.open(folder / "ablations.png").size
    assert width > 5 * height / 2  # five panels


def test_an_evaluation_that_is_not_whole_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "b" / "evaluation" / "boost" / "demo-tts" / "answers-0.jsonl").unlink()
    with pytest.raises(ValueError, match="b/evaluation: demo-tts is unfinished"):
        ablations.main(["--folder", str(copy)])
    with pytest.raises(FileNotFoundError, match="tools.demo.ablations writes it"):
        ablations.main(["--folder", str(tmp_path)])


@pytest.mark.slow
def test_the_short_form_trains_evaluates_and_reports(tmp_path):
    from training.toy_run import make_toy_run

    from tools.finetune_sts import main as train

    toy = make_toy_run(tmp_path)
    base = tmp_path / "base"
    train(toy.flags(base / "stage1", max_steps=2, extract_codes=True, audio_code_dir=base / "codes"))
    make_toy_corpus(base / "corpus")
    for name in ("mtp.yaml", "stage4.yaml"):
        (base / "corpus" / name).write_text(f"dataset:\n  toy:\n    data_paths: [{toy.folder / 'data.jsonl'}]\n")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tools.demo.ablations", "--ci", "--modules", "2", "--base", str(base)]
    command += ["--output", str(output), "--extra-args", "--model_max_length 128 --use_cpu true"]
    command += ["--audio-tokenizer-path", str(toy.audio_tokenizer), "--audio-decoder-path", str(toy.folder / "decoder")]
    variables = os.environ | {"DEEPSPEED_CONFIG": "none", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    first = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    names = [row["name"] for row in json.loads((output / "ablations.json").read_text())["runs"]]
    assert names == ["2_boost", "2_boost, vanilla", "2_boost_kl"]
    (output / "2_boost_kl" / "evaluation" / "results.json").unlink()  # as if it had been stopped there
    second = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert second.returncode == 0 and second.stdout.count("== Step ") == 1 and "2_boost_kl" in second.stdout

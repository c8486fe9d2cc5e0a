"""The demo evaluation and its report, on a toy model with random weights that answers with text and codes."""

import json
import shutil
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile
import torch
from toy_corpus import SENTENCES, LengthJudge, make_toy_corpus
from toy_speech_lm import load_toy

from evaluation import demo
from evaluation.answers import Answer, answer_items, load_items, score, write_wave
from evaluation.judges import JUDGES
from evaluation.processes import claim_part
from tools.demo import report
from vita_audio.data.codes import AudioCodeStore, extract_codes
from vita_audio.interleave import MODES


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_toy_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def results(tmp_path_factory, toy_folders, corpus) -> Path:
    """Folder of a finished evaluation, its options in options.json."""
    folder = tmp_path_factory.mktemp("results")
    audio_tokenizer = load_toy(toy_folders).audio_tokenizer
    store = AudioCodeStore(folder / "codes", audio_tokenizer.fingerprint)
    extract_codes([corpus / "audio" / "train.flac"], store, lambda device: audio_tokenizer)
    (folder / "options.json").write_text(json.dumps(options := demo_options(toy_folders, corpus, folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
        demo.main(options)
    return folder


def demo_options(toy_folders, corpus: Path, folder: Path) -> list[str]:
    options = {
        "model": toy_folders.model,
        "corpus": corpus,
        "codes": folder / "codes",
        "output": folder / "evaluation",
        "audio-tokenizer-path": toy_folders.audio_tokenizer,
        "audio-decoder-path": toy_folders.audio_decoder,
        "judge": "length",
        "num-asr": 3,
        "num-tts": 2,
        "num-qa": 2,
        "num-roundtrip": 2,
        "batch-size": 2,
        "max-new-tokens": 24,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def make_answer(task: str, **values) -> Answer:
    defaults = {"id": "x", "mode": "boost", "reference": "one two", "text": "", "num_tokens": 10}
    return Answer(task=task, **defaults | {"num_backbone_passes": 5, **values})


def test_answers_without_audio_are_wrong_as_a_whole_and_counted():
    answers = [
        make_answer("asr", text="one two"),
        make_answer("tts", has_audio=True, transcript="one two"),
        make_answer("tts", has_audio=False, transcript=""),
        make_answer("qa", text="one two", text_right=True, speech_right=False),
    ]
    scores = score(answers)
    assert scores["asr_wer"] == 0
    assert scores["tts_wer"] == pytest.approx(1 / 2)
    assert (scores["qa_text_accuracy"], scores["qa_speech_accuracy"]) == (1, 0)
    assert scores["without_audio"] == 2
    assert scores["backbone_passes_per_token"] == pytest.approx(1 / 2)


def test_an_answer_without_audio_has_a_silent_file(tmp_path):
    wave, rate = soundfile.read(write_wave(tmp_path / "a" / "b.wav", torch.zeros(0), 22_050))
    assert rate == 22_050 and len(wave) == 11_025 and not wave.any()


def test_items_are_a_fixed_draw_with_audio_that_exists(corpus):
    items = load_items(corpus, "asr", 2)
    assert items == load_items(corpus, "asr", 2) and len(items) == 2
    assert all(Path(item["audio"]).is_file() for item in items)
    assert [item["reference"] for item in load_items(corpus, "asr", 99)] == list(SENTENCES)


def test_answers_are_greedy_whatever_the_checkpoint_says(toy_folders, corpus, tmp_path):
    speech_lm = load_toy(toy_folders)
    rows = load_items(corpus, "tts", 2)
    options = {"judge": LengthJudge(), "folder": tmp_path, "batch_size": 2, "max_new_tokens": 12}
    expected = answer_items(speech_lm, rows, "boost", **options)
    speech_lm.model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, repetition_penalty=3.0)
    assert answer_items(speech_lm, rows, "boost", **options) == expected


def test_held_out_files_without_rows_are_named(corpus, tmp_path):
    (tmp_path / "heldout_qa.jsonl").write_text("")
    with pytest.raises(ValueError, match="heldout_qa.jsonl must have a row, got none"):
        load_items(tmp_path, "qa", 3)


@pytest.mark.parametrize("option", ["num-asr", "num-tts", "num-qa", "num-roundtrip", "batch-size", "max-new-tokens"])
def test_a_count_of_nothing_is_refused_at_once(results, option, capsys):
    options = json.loads((results / "options.json").read_text())
    options[options.index(f"--{option}") + 1] = "0"
    with pytest.raises(SystemExit):
        demo.main(options)
    assert f"--{option}: must be at least 1, got 0" in capsys.readouterr().err


def test_every_mode_answers_every_item_and_speech_is_judged_from_its_file(results):
    for mode in MODES:
        part = demo.read_mode(results / "evaluation", mode)
        assert [answer["task"] for answer in part["answers"]] == ["asr"] * 3 + ["tts"] * 2 + ["qa"] * 2
        for answer in part["answers"]:
            assert answer["num_tokens"] > 0
            assert (answer["wav"] is None) == (answer["task"] == "asr")
            if answer["wav"] and answer["has_audio"]:
                seconds = soundfile.info(answer["wav"]).duration + 0.6
                assert len(answer["transcript"].split()) == round(10 * seconds)
    scores = {mode: demo.read_mode(results / "evaluation", mode)["scores"] for mode in MODES}
    passes = {mode: scores[mode]["backbone_passes_per_token"] for mode in MODES}
    assert passes["vanilla"] == 1 and passes["turbo"] < passes["boost"] < 1


def test_only_ratios_that_were_not_trained_are_marked(results):
    foreign = {mode: demo.read_mode(results / "evaluation", mode)["foreign_ratio"] for mode in MODES}
    assert foreign == {"vanilla": False, "balance": True, "boost": False, "turbo": True}


def test_a_finished_evaluation_is_not_repeated_and_a_lost_part_is_made_again(results, monkeypatch, tmp_path):
    options = json.loads((results / "options.json").read_text())
    folder = shutil.copytree(results / "evaluation", tmp_path / "evaluation")
    options[options.index("--output") + 1] = str(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    monkeypatch.setitem(JUDGES, "length", None)  # cannot be called
    demo.main(options)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")} == before
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    (folder / "answer.json").unlink()
    demo.main(options)
    kept = json.loads((folder / "answer.json").read_text())
    earlier = json.loads((results / "evaluation" / "answer.json").read_text())
    assert (kept["text"], kept["transcript"]) == (earlier["text"], earlier["transcript"])
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json") if path.name in before} | {
        "answer.json": before["answer.json"]
    } == before


@pytest.fixture
def unfinished(results, tmp_path) -> tuple[Path, list[str]]:
    """A copy of the finished evaluation without its kept answer, and the options that continue it."""
    options = json.loads((results / "options.json").read_text())
    folder = shutil.copytree(results / "evaluation", tmp_path / "evaluation")
    options[options.index("--output") + 1] = str(folder)
    (folder / "answer.json").unlink()
    return folder, options


@pytest.mark.parametrize(
    "option, value, named",
    [("judge", "other", "judge"), ("num-asr", "2", "num_asr"), ("max-new-tokens", "9", "max_new_tokens")],
)
def test_parts_made_with_other_settings_are_refused(unfinished, capsys, option, value, named):
    folder, options = unfinished
    options[options.index(f"--{option}") + 1] = value
    with pytest.raises(ValueError, match=rf"\.json was made with other settings \({named}\)"):
        demo.main(options)
    assert not (folder / "answer.json").exists()


def test_a_part_that_another_process_works_on_is_waited_for_and_made_if_it_never_comes(unfinished, monkeypatch):
    folder, options = unfinished
    made, (has_it, may_end) = [], (threading.Event(), threading.Event())

    def work_elsewhere() -> None:
        with claim_part(folder, "answer", wait=False) as is_ours:
            has_it.set()
            assert is_ours and may_end.wait(60)

    def make(self, part: str) -> dict:
        made.append(part)
        may_end.set()  # without a result, as if that process had been killed
        return {}

    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    monkeypatch.setattr(demo.DemoEvaluation, "make", make)
    (folder / "turbo_asr.json").unlink()
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(work_elsewhere)
        assert has_it.wait(60)
        demo.main(options)
        elsewhere.result()
    assert made == ["turbo_asr", "answer"]


def test_a_part_that_another_process_has_finished_meanwhile_is_not_made_again(results, unfinished, monkeypatch):
    """It was missing when this process looked, and is there when its turn comes."""
    folder, options = unfinished
    finished = results / "evaluation" / "answer.json"
    (folder / "turbo_asr.json").unlink()

    def make(self, part: str) -> dict:
        shutil.copy(finished, folder / "answer.json")
        return {"made": part}

    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    monkeypatch.setattr(demo.DemoEvaluation, "make", make)
    demo.main(options)
    assert demo.read_part(folder, "turbo_asr")["made"] == "turbo_asr"
    assert (folder / "answer.json").read_bytes() == finished.read_bytes()


def test_a_part_that_another_process_has_made_meanwhile_of_another_model_is_refused(unfinished, monkeypatch, capsys):
    folder, options = unfinished
    (folder / "turbo_asr.json").unlink()

    def make(self, part: str) -> dict:
        demo.write_json(folder / "answer.json", {"settings": {"model": "another"}})
        return {}

    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    monkeypatch.setattr(demo.DemoEvaluation, "make", make)
    with pytest.raises(ValueError, match=r"answer.json was made with other settings \(model"):
        demo.main(options)


def test_parts_of_another_model_are_refused(unfinished, toy_folders, tmp_path):
    """Of a copy in another folder, and of one that was trained again in the same folder."""
    folder, options = unfinished
    model = shutil.copytree(toy_folders.model, tmp_path / "model")
    options[options.index("--model") + 1] = str(model)
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        demo.main(options)
    settings = demo.settings_of(demo.parse_arguments(options))
    demo.write_json(folder / "boost_tts.json", demo.read_part(folder, "boost_tts") | {"settings": settings})
    demo.check_parts(folder, ["boost_tts"], settings)
    (model / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"boost_tts.json was made with other settings \(weights\)"):
        demo.check_parts(folder, ["boost_tts"], demo.settings_of(demo.parse_arguments(options)))


def test_weights_of_every_form_are_settings(tmp_path):
    for name in ("model.safetensors", "pytorch_model-00001-of-00002.bin", "training_args.bin"):
        (tmp_path / name).touch()
    weights = demo.settings_of(Namespace(model=tmp_path))["weights"]
    assert [name for name, _, _ in weights] == ["model.safetensors", "pytorch_model-00001-of-00002.bin"]


def test_without_a_new_phrasing_the_first_question_is_kept(toy_folders, monkeypatch, tmp_path):
    corpus = make_toy_corpus(tmp_path)
    lines = (corpus / "heldout_qa.jsonl").read_text().splitlines(keepends=True)
    (corpus / "heldout_qa.jsonl").write_text("".join(line for line in lines if '"phrasing"' not in line))
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    options = demo.parse_arguments(demo_options(toy_folders, corpus, tmp_path))
    assert demo.DemoEvaluation(options, "cpu").make("answer")["question_text"] == json.loads(lines[0])["text"]


def write_stage(folder: Path, num_modules: int) -> Path:
    names = ["main", *(f"mtp_{index}" for index in range(num_modules))]
    log = [{"step": step, "loss": 4.0 - step} | {f"{name}_loss": 4.0 - step for name in names} for step in (1, 2)]
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"step": 2, "train_loss": 1.0}]}))
    results = {"steps": 2, "minutes": 0.1, "final_loss": 2.0, "final_losses": dict.fromkeys(names, 2.0)}
    (folder / "train_results.json").write_text(json.dumps(results))
    return folder


def test_the_report_has_its_fields_files_and_pictures(results, tmp_path):
    stages = [write_stage(tmp_path / "stage1", 0), write_stage(tmp_path / "stage2", 1)]
    evaluation, output = results / "evaluation", tmp_path / "out"
    report.main(["--evaluation", str(evaluation), "--output", str(output), "--stages", *map(str, stages)])
    content = json.loads((output / "report.json").read_text())
    assert set(content) == {"modes", "roundtrip", "answer", "stages", "generated"}
    assert list(content["modes"]) == list(MODES)
    for mode in content["modes"].values():
        assert set(mode) == {*report.MODE_FIELDS, "foreign_ratio"}
    assert set(content["roundtrip"]) == {"wer", "wer_original", "codebook_perplexity", "codebook_size"}
    assert 1 <= content["roundtrip"]["codebook_perplexity"] <= content["roundtrip"]["codebook_size"]
    assert set(content["answer"]) == {"question_wav", "wav", "text", "transcript"}
    assert content["stages"]["stage2"]["final_losses"] == {"main": 2.0, "mtp_0": 2.0}
    assert len(content["generated"]) == 4 * (2 + 2) + 2 * 2 + 1
    for entry in content["generated"]:
        assert set(entry) == {"task", "mode", "wav", "reference_text", "transcript"}
        assert Path(entry["wav"]).is_file() and entry["reference_text"]
    markdown = (output / "report.md").read_text()
    assert "| balance (1 4 3 8 4 10) \\* |" in markdown and "| boost (1 10 4 10) |" in markdown
    for picture in ("losses.png", "modes.png", "answer.png"):
        assert picture in markdown
        assert (output / picture).read_bytes().startswith(b"\x89PNG")


def test_a_report_of_an_unfinished_evaluation_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="vanilla_asr.json; run python -m evaluation.demo"):
        report.main(["--evaluation", str(tmp_path), "--output", str(tmp_path), "--stages", str(tmp_path)])

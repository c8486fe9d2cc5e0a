"""The report of a quick start, on a toy model with random weights that answers with text and codes."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from toy_corpus import LengthJudge, arguments, make_toy_corpus
from toy_speech_lm import load_toy

from evaluation import evaluate_codec, run
from evaluation.judges import JUDGES
from evaluation.run_folder import RowFile
from tools.demo import report
from vita_audio.data.codes import AudioCodeStore, extract_codes
from vita_audio.interleave import MODES


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_folders) -> Path:
    """Folder with the corpus and both evaluations."""
    folder = tmp_path_factory.mktemp("quickstart")
    corpus = make_toy_corpus(folder / "corpus")
    audio_tokenizer = load_toy(toy_folders).audio_tokenizer
    store = AudioCodeStore(folder / "codes", audio_tokenizer.fingerprint)
    extract_codes([corpus / "audio" / "train.flac"], store, lambda device: audio_tokenizer)
    options = ["--modes", *MODES, "--limit", "demo-tts=2", "--time-alone", "demo-qa=1"]
    codec = f"--corpus heldout={corpus / 'heldout_asr.jsonl'} --output {folder / 'codec'} --judge length --max-clips 2"
    codec += f" --codes {folder / 'codes'} --codes-of {corpus / 'stage1.yaml'}"
    codec += f" --audio-tokenizer-path {toy_folders.audio_tokenizer} --audio-decoder-path {toy_folders.audio_decoder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
        assert run.main(arguments(toy_folders, corpus, folder / "evaluation", *options)) == 0
        evaluate_codec.main(codec.split())
    return folder


def write_stage(folder: Path, num_modules: int) -> Path:
    names = ["main", *(f"mtp_{index}" for index in range(num_modules))]
    log = [{"step": step, "loss": 4.0 - step} | {f"{name}_loss": 4.0 - step for name in names} for step in (1, 2)]
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"step": 2, "train_loss": 1.0}]}))
    results = {"steps": 2, "minutes": 0.1, "final_loss": 2.0, "final_losses": dict.fromkeys(names, 2.0)}
    (folder / "train_results.json").write_text(json.dumps(results))
    return folder


def write_report(folder: Path, output: Path, *stages: Path) -> None:
    options = f"--evaluation {folder / 'evaluation'} --codec {folder / 'codec'} --output {output} --stages"
    report.main([*options.split(), *map(str, stages)])


def test_the_report_has_its_fields_files_and_plots(folder, tmp_path):
    write_report(folder, tmp_path / "out", write_stage(tmp_path / "stage1", 0), write_stage(tmp_path / "stage2", 1))
    content = json.loads((tmp_path / "out" / "report.json").read_text())
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
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| balance (1 4 3 8 4 10) \\* |" in markdown and "| boost (1 10 4 10) |" in markdown
    for plot in ("losses.png", "modes.png", "answer.png"):
        assert plot in markdown
        assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")


def test_metrics_are_those_of_the_evaluations(folder):
    modes, trained = report.read_modes(folder / "evaluation")
    rows = json.loads((folder / "evaluation" / "results.json").read_text())["results"]
    rows = {(row["benchmark"], row["mode"]): row for row in rows}
    assert str(trained) == "boost"
    assert {name: mode.foreign_ratio for name, mode in modes.items()} == {
        **{"vanilla": False, "balance": True, "boost": False, "turbo": True}
    }
    for name, mode in modes.items():
        scores, qa = mode.scores, rows["demo-qa", name]
        assert scores["asr_wer"] == rows["demo-asr", name]["figures"]["wer"]["value"]
        assert scores["qa_speech_accuracy"] == qa["figures"]["accuracy_speech"]["value"]
        assert scores["tokens_per_second"] == qa["speed"]["tokens_per_second_alone"]["value"]
        spoken = [rows[benchmark, name] for benchmark in ("demo-tts", "demo-qa")]
        silent = sum(row["figures"]["without_audio"]["value"] * row["num_samples"] for row in spoken)
        assert scores["without_audio"] == pytest.approx(silent)
        tasks = ("asr", "tts", "qa")
        answers = [RowFile(folder / "evaluation" / name / f"demo-{task}", "answers").read().values() for task in tasks]
        passes, tokens = (
            sum(row[key] for rows in answers for row in rows) for key in ("num_backbone_passes", "num_tokens")
        )
        assert scores["backbone_passes_per_token"] == pytest.approx(passes / tokens)
    assert modes["vanilla"].scores["backbone_passes_per_token"] == 1


def test_answers_are_compared_with_the_whole_sentence(folder, tmp_path):
    """Given the right text and nothing to hear, one of the two questions has no speech."""
    copy = shutil.copytree(folder / "evaluation", tmp_path / "evaluation")
    path = copy / "boost" / "demo-qa" / "answers-0.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    changed = [first | {"text": "The capital of France is Paris."}, second | {"text": "Paris", "wav": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    modes, _ = report.read_modes(copy)
    scores, before = modes["boost"].scores, report.read_modes(folder / "evaluation")[0]["boost"].scores
    assert (scores["qa_text_accuracy"], scores["qa_text_exact"]) == (1, 1 / 2)
    assert scores["without_audio"] == before["without_audio"] + 1
    assert modes["boost"].text_accuracy("phrasing") == 1 and modes["boost"].text_accuracy("none") is None


def test_the_answer_to_listen_to_is_of_a_new_phrasing_and_an_answer_without_audio_is_silence(folder, tmp_path):
    modes, _ = report.read_modes(folder / "evaluation")
    answer = report.pick_answer(modes["boost"], "boost", tmp_path)
    assert "questionphrasing" not in answer["question_wav"] and "phrasing" in answer["question_wav"]
    samples = modes["boost"].outcomes["qa"].samples
    del samples[1]
    assert "rendering" in report.pick_answer(modes["boost"], "boost", tmp_path)["question_wav"]
    wave, rate = soundfile.read(report.write_silence(tmp_path / "silence.wav"))
    assert len(wave) == rate / 2 and not wave.any()


def test_a_report_without_its_evaluations_says_how_to_make_them(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json; run python -m evaluation.run"):
        write_report(tmp_path, tmp_path, tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "codec" / "codec.json").unlink()
    with pytest.raises(FileNotFoundError, match="codec.json; run python -m evaluation.evaluate_codec"):
        write_report(copy, tmp_path, tmp_path)
    (copy / "evaluation" / "turbo" / "demo-qa" / "alone-0.jsonl").unlink()
    with pytest.raises(ValueError, match="no speed in mode turbo; .* --time-alone demo-qa=8"):
        write_report(copy, tmp_path, tmp_path)
    (copy / "evaluation" / "turbo" / "demo-tts" / "answers-0.jsonl").unlink()
    with pytest.raises(ValueError, match="demo-tts is unfinished in mode turbo"):
        write_report(copy, tmp_path, tmp_path)

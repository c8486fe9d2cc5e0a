"""Synthesis of a codec's training speech: files and manifest, taken up where it stopped."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile

from tools.codec import make_corpus
from tools.codec.corpus import load_corpus
from tools.demo.domain import ENGLISH

pytest.importorskip("piper")


def make(folder, *flags):
    make_corpus.main(["--output", str(folder), "--processes", "0", *map(str, flags)])
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sentences_are_spoken_once_and_can_be_read(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("yes\n\nnine\n", encoding="utf-8")
    rows = make(tmp_path / "corpus", "--texts", texts)
    assert sorted(row["text"] for row in rows) == ["nine", "yes"]
    files = {row["audio"]: (tmp_path / "corpus" / row["audio"]).read_bytes() for row in rows}
    lost = rows[0]["audio"]
    (tmp_path / "corpus" / lost).unlink()
    assert [(row["audio"], row["phones"]) for row in make(tmp_path / "corpus", "--texts", texts)] == [
        (row["audio"], row["phones"]) for row in rows
    ]
    assert all((tmp_path / "corpus" / name).read_bytes() == data for name, data in files.items() if name != lost)
    nine, yes = sorted(load_corpus(tmp_path / "corpus"), key=lambda utterance: utterance.text)
    assert "".join(yes.symbols) == "jɛs" and (yes.rate, yes.voice) == (22050, "joe")
    assert 0.4 < len(nine.wave) / nine.rate < 1.5 and np.abs(nine.wave).max() == pytest.approx(0.7 * 32768, rel=0.01)


def test_renderings_of_a_sentence_differ_and_one_process_makes_the_same_ones_again(tmp_path):
    (tmp_path / "texts.txt").write_text("yes\n", encoding="utf-8")
    waves = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        rows = make(folder, "--texts", tmp_path / "texts.txt", "--renderings", "2")
        assert [row["text"] for row in rows] == ["yes", "yes"]
        waves.append([soundfile.read(folder / row["audio"])[0] for row in rows])
    (one, other), again = waves
    assert len(one) != len(other) or not np.array_equal(one, other)
    assert all(map(np.array_equal, (one, other), again))


@pytest.mark.parametrize("flags", [("--texts", "x.txt", "--renderings", "0"), ("--domain", "--renderings", "2")])
def test_renderings_of_nothing_are_refused(tmp_path, capsys, flags):
    with pytest.raises(SystemExit):
        make_corpus.parse_arguments(["--output", str(tmp_path), *flags])
    assert "--renderings must be 1 or more, and needs --texts" in capsys.readouterr().err


def test_other_voices_speak_at_the_same_rate_between_the_same_silences(tmp_path):
    voices = {"flite": "flite:slt", "espeak-ng": "espeak:en-us+f3"}
    if not (programs := [program for program in voices if shutil.which(program)]):
        pytest.skip("neither flite nor espeak-ng is installed")
    speaker = make_corpus.Speaker(0)
    for program in programs:
        voice = voices[program]
        job = make_corpus.Job(voice, "seven", seed=1, path=tmp_path / f"{program}.flac")
        row = speaker(job)
        wave, rate = soundfile.read(job.path)
        loud = np.flatnonzero(np.abs(wave) > 0.1)
        assert row | {"audio": f"{program}.flac", "text": "seven", "voice": voice} == row and rate == 22050
        assert row["seconds"] == pytest.approx(len(wave) / rate, abs=1e-3) and row["phones"]
        assert loud[0] / rate < 0.3 and len(wave) / rate - loud[-1] / rate < 0.6


def test_voices_share_the_generated_texts_and_files_follow_from_the_seed(tmp_path):
    pytest.importorskip("wonderwords")

    def plan(*flags):
        return make_corpus.plan_jobs(
            make_corpus.parse_arguments(["--output", str(tmp_path), "--main-count", "9", *flags])
        )

    jobs = plan("--other-count", "14")
    assert jobs == plan("--other-count", "14") and len({job.path for job in jobs}) == len({job.text for job in jobs})
    assert [job.voice for job in jobs].count("joe") == 9
    if shutil.which("flite") and shutil.which("espeak-ng"):
        assert sorted(job.voice for job in jobs if job.voice != "joe") == sorted(2 * make_corpus.OTHER_VOICES)
    assert {job.path for job in jobs}.isdisjoint(job.path for job in plan("--seed", "1"))


def test_others_speak_the_texts_of_the_decoders_voice_and_it_repeats_answers(tmp_path):
    pytest.importorskip("wonderwords")
    flags = ["--output", str(tmp_path), "--main-count", "9", "--parallel", "4", "--domain"]
    jobs = make_corpus.plan_jobs(make_corpus.parse_arguments(flags))
    own = [job.text for job in jobs if job.voice == "joe"]
    others = [job.text for job in jobs if job.voice != "joe"]
    if shutil.which("flite") and shutil.which("espeak-ng"):
        assert len(others) == 4 and set(others) <= set(own)
    assert own.count("the capital of france is paris") == 4
    held_out = {*ENGLISH.heldout_sentences("quick"), *(item.held_out_phrasing for item in ENGLISH.questions("quick"))}
    assert not set(own) & held_out
    assert len({job.path for job in jobs}) == len(jobs)


def test_a_missing_file_of_texts_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make(tmp_path / "corpus", "--texts", tmp_path / "none.txt")
    assert "none.txt" in capsys.readouterr().err and not (tmp_path / "corpus").exists()


def test_a_voice_without_its_command_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: None)
    (tmp_path / "texts.txt").write_text("yes\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        make(tmp_path / "corpus", "--texts", tmp_path / "texts.txt", "--voice", "flite:slt")
    error = capsys.readouterr().err
    assert "--voice flite:slt needs the command flite; install it" in error and not (tmp_path / "corpus").exists()


def test_the_decoders_voice_speaks_rows_of_frequent_words_too(tmp_path):
    pytest.importorskip("wordfreq")
    jobs = make_corpus.plan_jobs(make_corpus.parse_arguments(["--output", str(tmp_path), "--frequent-count", "5"]))
    assert len(jobs) == 5 and {job.voice for job in jobs} == {"joe"}


def test_frequent_words_without_their_package_are_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wonderwords")
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(SystemExit):
        make_corpus.main(["--output", str(tmp_path / "corpus"), "--frequent-count", "5"])
    error = capsys.readouterr().err
    assert "need the package wordfreq; pip install wordfreq" in error and error.count("\n") == 1
    assert not (tmp_path / "corpus").exists()

"""Public downloads become benchmarks: small folders of their forms, with tones instead of speech."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from evaluation import prepare
from evaluation.suites import BENCHMARKS

RATE = 16_000


def tone(path: Path, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(int(seconds * RATE)) * 0.05), RATE)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def librispeech(folder: Path) -> None:
    for split in ("dev-clean", "test-other"):
        tone(folder / split / "1" / "2" / "1-2-0000.flac")
        write(folder / split / "1" / "2" / "1-2.trans.txt", "1-2-0000 GOOD MORNING\n")


def libritts(folder: Path) -> None:
    tone(folder / "test-clean" / "1" / "2" / "1_2_0.wav")
    write(folder / "test-clean" / "1" / "2" / "1_2_0.normalized.txt", "Good morning.\n")


def aishell(folder: Path) -> None:
    tone(folder / "wav" / "test" / "S1" / "BAC1.wav")
    write(folder / "transcript" / "aishell_transcript_v0.8.txt", "BAC0 一 二\nBAC1 你 好\n")


def wenetspeech(folder: Path) -> None:
    tone(folder / "audio" / "a.wav", 1.0)
    times = {"begin_time": 0.25, "end_time": 0.75}
    segments = [
        {"sid": f"s{index}", "text": "你好", "subsets": [subset], **times}
        for index, subset in enumerate(("TEST_NET", "TEST_MEETING", "L"))
    ]
    write(folder / "WenetSpeech.json", json.dumps({"audios": [{"path": "audio/a.wav", "segments": segments}]}))


def fleurs(folder: Path) -> None:
    tone(folder / "en_us" / "audio" / "test" / "1.wav")
    write(folder / "en_us" / "test.tsv", '7\t1.wav\t"Good" morning.\tgood morning\tg o\t1600\tMALE\n')


def seedtts(folder: Path) -> None:
    tone(folder / "en" / "voice.wav")
    write(folder / "en" / "meta.lst", "x|who|voice.wav|Good morning.\n")


def questions(column: str, answer, audio: str):
    def make(folder: Path) -> None:
        content = tone(folder / "x.wav").read_bytes()
        row = {"question": "Which city?", column: answer, audio: {"bytes": content, "path": "x.wav"}}
        parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "test-00000.parquet")

    return make


TRIVIA = {"value": "Paris", "aliases": ["Paris", "City of Light"]}
DOWNLOADS = {
    "librispeech": (librispeech, {"librispeech-validation-clean": "GOOD MORNING", "librispeech-test-other": None}),
    "libritts": (libritts, {"libritts-test-clean": "Good morning."}),
    "aishell": (aishell, {"aishell-1": "你好"}),
    "wenetspeech": (wenetspeech, {"wenetspeech-net": "你好", "wenetspeech-meeting": "你好"}),
    "fleurs": (fleurs, {"fleurs-en": "good morning"}),
    "seedtts": (seedtts, {"seedtts-en": "Good morning."}),
    "llama-questions": (questions("answer", "Paris", "audio"), {"llama-questions": "Paris"}),
    "web-questions": (questions("answers", ["Paris", "Rome"], "audio"), {"web-questions": "Paris"}),
    "trivia-qa": (questions("answer", TRIVIA, "question_audio"), {"trivia-qa": "Paris", "trivia-qa-text": "Paris"}),
}


@pytest.mark.parametrize("name", prepare.NAMES)
def test_a_download_becomes_a_benchmark(name, tmp_path):
    make, expected = DOWNLOADS[name]
    make(tmp_path / "download")
    prepare.main([name, "--from", str(tmp_path / "download"), "--data", str(tmp_path / "data")])
    for benchmark, reference in expected.items():
        (item,) = BENCHMARKS[benchmark].items(tmp_path / "data")
        assert reference is None or item.references[0] == reference
        for audio in filter(None, (item.audio, item.recording, item.voice)):
            assert soundfile.info(audio).duration == pytest.approx(0.5 if name == "wenetspeech" else 0.1)
    if name == "trivia-qa":
        assert BENCHMARKS[name].items(tmp_path / "data")[0].references == ("Paris", "City of Light")


@pytest.mark.parametrize("name", prepare.NAMES)
def test_a_folder_without_the_download_is_one_clear_error(name, tmp_path):
    with pytest.raises((ValueError, OSError), match="no samples|nothing of|No such file"):
        prepare.main([name, "--from", str(tmp_path), "--data", str(tmp_path / "data")])
    assert not list((tmp_path / "data").rglob("*.jsonl"))


def test_a_cut_that_was_stopped_is_made_again(tmp_path, monkeypatch):
    wenetspeech(tmp_path / "download")
    options = ["wenetspeech", "--from", str(tmp_path / "download"), "--data", str(tmp_path / "data")]
    write = soundfile.write

    def stop(path, wave, rate, **options):
        write(path, wave[: len(wave) // 2], rate, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare.main(options)
    monkeypatch.undo()
    prepare.main(options)
    for name in DOWNLOADS["wenetspeech"][1]:
        (item,) = BENCHMARKS[name].items(tmp_path / "data")
        assert soundfile.info(item.audio).duration == pytest.approx(0.5)


def test_questions_of_other_parts_are_left_out(tmp_path):
    make, _ = DOWNLOADS["web-questions"]
    make(tmp_path / "download")
    (tmp_path / "download" / "test-00000.parquet").rename(tmp_path / "download" / "train-00000.parquet")
    make(tmp_path / "download")
    prepare.main(["web-questions", "--from", str(tmp_path / "download"), "--data", str(tmp_path / "data")])
    assert len(BENCHMARKS["web-questions"].items(tmp_path / "data")) == 1

"""From recordings to a report: commands that their programs accept, one line for what is wrong, the report itself."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_tokenizers.tiny_folders import NUM_CODES, make_speech_decoder
from toy_corpus import LengthJudge
from toy_speech_lm import make_toy_folders

from tools import prepare_speech
from tools.codec import finetune_voice, voice_data
from tools.codec.voice_judging import VoiceJudge
from tools.demo.steps import ROOT
from tools.voice import report, your_voice
from tools.voice.your_voice import DEMO_MODEL, Run
from vita_audio.serve.__main__ import parse_arguments as parse_serving

RATE = 22_050


class OneSpeaker:
    """Stands in for Resemblyzer, which the tests' environment need not have."""

    def embed(self, sound):
        return np.ones(1)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(VoiceJudge, "load", lambda *_: VoiceJudge(LengthJudge(), OneSpeaker()))
    monkeypatch.setattr(voice_data, "SHORTEST_SECONDS", 2)


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for index in range(4):
        wave = 0.3 * np.sin(np.arange(RATE) * (0.05 + 0.01 * index))
        soundfile.write(folder / f"{index}.wav", wave, RATE)
    return folder


def make_run(**changes):
    values = {"recordings": "in", "folder": Path("out"), "model": "m", "judge": "whisper_tiny_en", "language": "en"}
    return Run(**{"tokenizer": None, "decoder": None, "speaker": None, "steps": None} | values | changes)


@pytest.mark.parametrize(
    "changes", [{}, {"tokenizer": "tokenizer", "decoder": "decoder", "speaker": "me", "steps": 7, "language": "de"}]
)
def test_all_commands_are_accepted_by_their_programs(changes):
    run = make_run(**changes)
    preparing, tuning, reporting = run.plan()
    prepared = prepare_speech.parse_arguments(preparing.command[2:])
    tuned, reported = (
        module.parse_arguments(step.command[3:]) for module, step in ((finetune_voice, tuning), (report, reporting))
    )
    assert prepared["output"] == tuned.voice and preparing.product.parent == tuned.voice
    assert tuned.output == run.decoder_folder.parent == tuning.product.parent
    for name in ("language", "judge", "tokenizer", "decoder", "speaker"):
        assert getattr(tuned, name) == getattr(reported, name) == getattr(run, name)
    assert prepared["language"] == run.language and prepared["asr"] == run.judge
    assert tuned.steps == (run.steps or finetune_voice.parse_arguments(["--voice", "x", "--output", "x"]).steps)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": str(DEMO_MODEL)}, "--audio-decoder-path out/voice/decoder"),
        ({"tokenizer": "t"}, "--model m --audio-decoder-path out/voice/decoder --audio-tokenizer-path t"),
    ],
)
def test_it_says_how_to_talk_in_this_voice(tmp_path, capsys, monkeypatch, changes, expected):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/report.json").write_text(
        json.dumps({"rows": {"recordings: after": {"likeness": 0.8123, "wer": 0.1, "wer_interval": [0.05, 0.2]}}})
    )
    your_voice.print_result(make_run(**changes))
    printed = capsys.readouterr().out
    assert "recordings: after: likeness 0.81, word error rate 10.0 % (5.0 to 20.0)" in printed
    talk = shlex.split(re.search("talk: (.*)", printed)[1])
    assert talk == ["bash", "scripts/talk.sh", *expected.split()]
    assert str(parse_serving(talk[2:]).audio_decoder_path) == "out/voice/decoder"


def refuse(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        your_voice.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and lines[-1].startswith("your_voice: ")
    return lines[-1]


def test_missing_and_empty_folders_are_named(tmp_path, capsys):
    assert "nowhere; give a folder of recordings" in refuse(capsys, tmp_path / "nowhere")
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    assert f"{tmp_path / 'empty'} holds no files" in refuse(capsys, tmp_path / "empty")


def test_a_missing_judge_is_named_before_any_work(recordings, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    line = refuse(capsys, recordings, "--output", tmp_path / "out")
    assert "speaker similarity needs the package resemblyzer" in line and "pip install --no-deps resemblyzer" in line
    assert not (tmp_path / "out").exists()


def test_a_language_that_the_recogniser_lacks_is_refused_before_any_work(recordings, tmp_path, capsys):
    line = refuse(capsys, recordings, "--output", tmp_path / "out", "--language", "de")
    assert "whisper_tiny_en transcribes en, got 'de'; choose another judge" in line
    assert not (tmp_path / "out").exists()


def test_another_kind_of_decoder_is_refused_before_any_work(recordings, tmp_path, capsys, stand_ins):
    make_speech_decoder(NUM_CODES).save_pretrained(tmp_path / "other")
    line = refuse(capsys, recordings, "--output", tmp_path / "out", "--audio-decoder-path", tmp_path / "other")
    assert "take tokenizer and decoder of one release" in line
    assert "config.yaml" in refuse(capsys, recordings, "--audio-decoder-path", recordings)


def test_models_that_cannot_speak_the_report_are_refused_before_any_work(recordings, tmp_path, capsys, stand_ins):
    plus = make_toy_folders(tmp_path / "plus", audio_input={"user": "continuous"})
    cases = {
        ("--model", plus.model): "--model must read audio as codes",
        ("--model", tmp_path / "typo"): "typo",
        ("--audio-tokenizer-path", plus.audio_tokenizer, "--audio-decoder-path", plus.audio_decoder): (
            "was trained on codes of the audio tokenizer"
        ),
    }
    for flags, message in cases.items():
        assert message in refuse(capsys, recordings, "--output", tmp_path / "out", *flags)
        assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(recordings, tmp_path, capsys, stand_ins):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").touch()
    assert "holds other files" in refuse(capsys, recordings, "--output", tmp_path / "out")


def test_the_dry_run_says_memory_and_time_and_writes_nothing(recordings, tmp_path, capsys, stand_ins):
    folders = make_toy_folders(tmp_path)
    flags = ["--audio-tokenizer-path", folders.audio_tokenizer, "--audio-decoder-path", folders.audio_decoder]
    flags += ["--model", folders.model, "--steps", 7]
    output = tmp_path / "out"
    assert your_voice.main(list(map(str, [recordings, "--dry_run", "--output", output, *flags]))) == 0
    printed = capsys.readouterr().out
    assert re.search(r"peak memory \d+\.\d GiB", printed) and re.search(r"flow: 7 steps of \d+\.\d\d s", printed)
    assert "total: about" in printed and not output.exists()


def test_the_report_has_before_and_after_of_recordings_and_of_the_model(recordings, tmp_path, stand_ins):
    folders = make_toy_folders(tmp_path)
    folder = tmp_path / "out"
    for part in ("data", "done"):
        (folder / part).mkdir(parents=True)
    *trained, held_out = sorted(map(str, recordings.iterdir()))
    rows = [json.dumps({"audio": path, "text": "beep beep", "voice": "me"}) for path in trained]
    (folder / "data" / "manifest.jsonl").write_text("\n".join(rows))
    (folder / "data" / "heldout_tts.jsonl").write_text(json.dumps({"audio": held_out, "reference": "beep beep"}))
    make_speech_decoder(NUM_CODES).save_pretrained(folder / "voice" / "decoder")
    attempt = {"step": 2, "likeness": 0.8, "wer": 0.2, "score": 0.6, "sounds": 1}
    recorded = {"seconds": 3.0, "clips": 3, "judged_clips": 1}
    result = {"recordings": recorded, "best": attempt, "attempts": [attempt]}
    (folder / "voice" / "voice.json").write_text(json.dumps(result))
    (folder / "done" / "voice.json").write_text(json.dumps({"minutes": 1.5}))
    flags = {"folder": folder, "model": folders.model, "device": "cpu"}
    flags |= {"tokenizer": folders.audio_tokenizer, "decoder": folders.audio_decoder}
    report.main([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    written = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = ("before", "after", "before, with a voice prompt")
    spoken = [f"{codes}: {row}" for codes in ("recordings", "the model") for row in rows]
    assert list(written["rows"]) == ["recordings: as recorded", *spoken]
    assert list(written["minutes"]) == ["voice", "report"] and 0 < written["minutes"]["report"] < 60
    assert list(written["wer_after_less_before"]) == ["recordings", "the model"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 7 and "http" not in page
    assert (
        "(3 clips; 1 more decided which training step was kept)" in page
        and "judged by whisper_tiny_en too, but on other" in page
    )


def test_a_test_corpus_replaces_the_held_out_recordings_and_none_is_an_error(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "heldout_tts.jsonl").touch()
    with pytest.raises(ValueError, match="no held-out recordings; record more, or give --test"):
        report.held_out(tmp_path, None)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "beep", "voice": "me"}))
    assert report.held_out(tmp_path, tmp_path) == [(tmp_path / "a.wav", "beep")]


def test_the_demo_model_says_what_it_can_and_other_models_what_was_recorded(tmp_path):
    spoken = report.texts_to_speak(ROOT / DEMO_MODEL, ["beep"])
    assert len(spoken) == report.NUM_ANSWERS and "beep" not in spoken
    assert report.texts_to_speak(tmp_path, ["beep"]) == ["beep"]

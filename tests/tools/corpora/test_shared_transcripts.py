"""Long recordings with a transcript: each clip gets the words that are said in it."""

from contextlib import closing

import numpy as np
import pytest
import soundfile
from layouts import RATE, noise
from test_prepare_speech import ANYTHING, rows_of, run

from tools.common.synthetic_speech import default_voice, load_voice, synthesise
from tools.corpora.alignment import share_transcript
from tools.corpora.clip_store import ClipStore
from tools.corpora.formats import read_corpus
from tools.corpora.measuring import Cutter, measure_corpus
from tools.corpora.output import problems
from tools.corpora.selection import judged_clips, select_clips

SENTENCES = (
    "The weather is fine today, and the harbour is full of boats.",
    "Seven of them came from the north in the early morning.",
    "“Please open the green door,” said the old man to his daughter.",
    "She did not hear him, because she was singing in the garden.",
    "The teacher wrote a long letter to her sister in the city.",
    "It took almost three weeks before an answer arrived.",
    "On Sunday we are going to visit the museum by the river.",
    "The tickets are cheap, but the queue is always very long.",
    "My brother plays chess with his friends every Thursday.",
    "He has never lost a game against our uncle.",
)


@pytest.mark.parametrize(
    ("transcript", "heard", "expected"),
    [
        ("One, two “three”. Four? Five!", ["one two three", "four five"], ["One, two “three”.", "Four? Five!"]),
        ("one two three four", ["one too", "tree four"], ["one two", "three four"]),
        ("one two three four", ["one two", "", "four"], ["one two", "", "three four"]),
        ("one two three", ["and one", "two and three and"], ["one", "two three"]),
        ("It's 5 o'clock - really", ["its five o clock", "really"], ["It's 5 o'clock -", "really"]),
        ("你好，世界。今天天气很好", ["你好世界", "今天天汽很好"], ["你好，世界。", "今天天气很好"]),
        ("one two", ["", ""], ["", "one two"]),
        ("", ["one", "two"], ["", ""]),
    ],
)
def test_each_clip_gets_its_words(transcript, heard, expected):
    assert share_transcript(transcript, heard) == expected


def test_a_long_recording_with_a_transcript_becomes_clips_with_theirs(tmp_path):
    voice = load_voice(default_voice(), seed=0)
    pause = np.zeros(voice.config.sample_rate, np.float32)
    wave = np.concatenate([part for text in SENTENCES for part in (synthesise(voice, text), pause)])
    soundfile.write(tmp_path / "talk.flac", wave, voice.config.sample_rate)
    assert len(wave) > 30 * voice.config.sample_rate
    (tmp_path / "talk.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    summary = run(tmp_path, tmp_path / "data", "--held-out", "0")
    texts = [row["messages"][1]["content"] for row in rows_of(tmp_path / "data/asr.jsonl")]
    assert texts == list(SENTENCES) and summary["rejections"] == {} and summary["wer"] < 0.1
    (tmp_path / "talk.txt").write_text(" ".join(sentence[::-1] for sentence in SENTENCES), encoding="utf-8")
    with pytest.raises(SystemExit):  # no clip can be used
        run(tmp_path, tmp_path / "data")
    kinds = {row["kind"] for row in rows_of(tmp_path / "data/rejections.jsonl")}
    assert kinds <= {"wrong transcript", "no words"} and "wrong transcript" in kinds


def test_without_a_recogniser_a_transcript_is_not_split(tmp_path):
    for seconds in (40, 130):
        soundfile.write(tmp_path / f"{seconds}.wav", noise(seconds, seconds * RATE), RATE)
        (tmp_path / f"{seconds}.txt").write_text("one two three")
    with closing(ClipStore(tmp_path / "clips.sqlite")) as store:
        measure_corpus(read_corpus(tmp_path, "folder"), store, Cutter(vad=None), None)
        select_clips(store, ANYTHING)
        assert [clip.text for clip, *_ in judged_clips(store.database)] == ["one two three"]
        [(kind, _, reason)] = problems(store.database)
    assert kind == "too long" and "it is split without --no-split and, as it has a transcript, with --asr" in reason

"""A folder of recordings for codec training: what can be used is read, what cannot is named."""

import json
import re

import numpy as np
import pytest
import soundfile

from tools.codec.corpus import hold_out, load_corpus, load_recognition

RATE = 16_000
WAVE = 0.5 * np.sin(np.arange(RATE // 2) * 0.1)


def write_corpus(folder, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "manifest.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def row(audio, **changes):
    return {"audio": audio, "text": "Two, four.", "voice": "anna"} | changes


def test_targets_are_phones_without_marks_or_else_letters(tmp_path):
    soundfile.write(tmp_path / "a.wav", WAVE, RATE)
    write_corpus(tmp_path, row("a.wav"), row("a.wav", phones=list("tˈuː fɔːɹ")), row("a.wav", voice="bert"))
    letters, phones = load_corpus(tmp_path, "anna")
    assert "".join(letters.symbols) == "twofour" and "".join(phones.symbols) == "tufɔɹ"
    assert [utterance.voice for utterance in load_corpus(tmp_path)] == ["anna", "anna", "bert"]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_every_format_gives_the_same_samples(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", np.stack([WAVE, -WAVE], axis=1), RATE, subtype=subtype)
    write_corpus(tmp_path, row("a.wav"))
    (utterance,) = load_corpus(tmp_path)
    assert utterance.wave.dtype == np.int16 and utterance.rate == RATE
    assert utterance.float_wave(RATE) == pytest.approx(WAVE, abs=1e-4)
    assert len(utterance.float_wave(8_000)) == len(WAVE) // 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([1, 2], r"a row must be an object with .* got \[1, 2\]"),
        ({"audio": "a.wav", "voice": "anna"}, "a row must be an object"),
        (row("a.wav", text=3), "a row must be an object"),
        (row("a.wav", phones=[1, 2]), "phones must be a list of symbols"),
        (row("gone.wav"), r"gone\.wav"),
        (row("gone\0.wav"), "gone"),
        (row("nan.wav"), r"nan\.wav: 1 of 8000 samples are NaN"),
        (row("short.wav"), "audio must be at least 0.1 s, got 0.050 s"),
        (row("text.wav"), r"text\.wav"),
        (b'{"audio": "a.wav"', "not JSON"),
        (b'{"audio": "caf\xe9.wav"}', "not JSON: .*utf-8"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_the_rest_read(tmp_path, capsys, bad, reason):
    soundfile.write(tmp_path / "a.wav", WAVE, RATE)
    broken = WAVE.copy()
    broken[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", WAVE[:800], RATE)
    (tmp_path / "text.wav").write_text("no audio")
    write_corpus(tmp_path, row("a.wav"), bad, row("a.wav"))
    assert len(load_corpus(tmp_path)) == 2
    printed = capsys.readouterr().out
    assert "2 utterances read, 1 skipped" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("skipped ")]
    assert line.startswith(f"skipped {tmp_path}/manifest.jsonl:2: ")
    assert re.search(reason, line)


def test_recordings_longer_than_allowed_are_named(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", WAVE, RATE)
    soundfile.write(tmp_path / "long.wav", np.tile(WAVE, 3), RATE)
    write_corpus(tmp_path, row("a.wav"), row("long.wav"))
    assert len(load_corpus(tmp_path)) == 2 and len(load_corpus(tmp_path, max_seconds=1)) == 1
    assert "long.wav: audio must be at most 1 s, got 1.5 s; split it" in capsys.readouterr().out


def test_a_corpus_without_anything_to_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*manifest\.jsonl; make one with"):
        load_corpus(tmp_path)
    write_corpus(tmp_path, row("gone.wav"))
    with pytest.raises(ValueError, match="no usable utterance of voice anna"):
        load_corpus(tmp_path, "anna")


def test_the_last_utterances_are_held_out():
    assert hold_out(list("abcdef"), 2) == (list("abcd"), list("ef"))


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (0, "must be 1 or more, got 0"),
        (-1, "must be 1 or more, got -1"),
        (4, "4 needs at least 8 utterances, got 6; lower it"),
    ],
)
def test_training_gets_no_less_than_is_held_out(count, reason):
    with pytest.raises(ValueError, match=f"--held-out {reason}"):
        hold_out(list("abcdef"), count)


def recognition(audio, text, **changes):
    turns = [("user", "Convert the speech to text.\n<|audio|>"), ("assistant", text)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "audios": [audio]} | changes


def test_recognition_samples_are_speech_with_its_text_in_one_mixed_order(tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    for number in range(8):
        soundfile.write(tmp_path / "audio" / f"{number}.wav", np.full(4000 + number, 0.25), RATE)
    samples = [recognition(f"audio/{number}.wav", f"number {number}") for number in range(7)]
    samples.append(recognition(str(tmp_path / "audio" / "7.wav"), "number 7"))
    spoken_answer = [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "<|audio|>"}]
    broken = [{"messages": spoken_answer, "audios": ["audio/1.wav"]}, recognition("audio/gone.wav", "gone"), [1]]
    broken += [recognition({"path": "audio/1.wav"}, "one"), recognition("audio/1.wav", "one", audios=[])]
    path = tmp_path / "asr.jsonl"
    path.write_text("\n".join(map(json.dumps, [*samples, *broken])), encoding="utf-8")
    utterances = load_recognition(path)
    texts = [utterance.text for utterance in utterances]
    assert texts != sorted(texts) == [f"number {number}" for number in range(8)]
    assert all(len(utterance.wave) == 4000 + int(utterance.text[-1]) for utterance in utterances)
    assert [utterance.text for utterance in load_recognition(path)] == texts
    printed = capsys.readouterr().out
    assert "8 utterances read, 5 skipped" in printed and printed.count("a recognition sample needs one audio file") == 4


def test_a_file_without_recognition_samples_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*asr\.jsonl; give a \.jsonl file of recognition samples"):
        load_recognition(tmp_path / "asr.jsonl")
    (tmp_path / "asr.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="gives no usable utterance of transcribed speech"):
        load_recognition(tmp_path / "asr.jsonl")

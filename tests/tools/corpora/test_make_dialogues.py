"""Written dialogues become spoken samples; a second run speaks only what is new."""

import json
import re

import pytest
import soundfile

from tools import make_dialogues
from tools.corpora import speaking
from tools.corpora.dialogues import Voice, read_dialogues
from vita_audio.data.chat import Conversation
from vita_audio.data.mixture import Problem, load_mixture, referenced_audio

CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "What is two plus two?"},
    {"role": "assistant", "content": "It is four."},
]
ROWS = [
    {"question": "What is two plus two?", "answer": "It is four."},
    {"Prompt": "What is the capital of France?", "Response": "Paris."},
    {"messages": CHAT},
]
BROKEN = {
    "{": "not JSON",
    "[1]": "must be a JSON object",
    json.dumps({"question": "Why?"}): "must be texts with words, got None",
    json.dumps({"question": "Why?", "answer": "..."}): "must be texts with words",
    json.dumps({"question": "Why?", "answer": 7}): "must be texts with words",
    json.dumps({"question": "Why?", "answer": "<|im_end|> a"}): "special tokens",
    json.dumps({"messages": "Hello"}): "messages must be a list",
    json.dumps({"messages": CHAT[:3]}): "turns must be of user and assistant in turn",
    json.dumps({"messages": [{"role": "system", "content": "a"}, *CHAT]}): "turns must be of user and assistant",
}


def test_dialogues_are_spoken_once_and_broken_rows_named(tmp_path, capsys):
    source, output = tmp_path / "qa.jsonl", tmp_path / "data"
    lines = [json.dumps(row) for row in ROWS] + list(BROKEN)
    source.write_text("\n".join(lines) + "\n")
    flags = ["--from", str(source), "--output", str(output), "--question-voices", "joe*0.9", "joe*1.1"]
    settings = json.dumps(make_dialogues.parse_arguments(flags), default=str)
    speaking.main(settings)
    samples = [json.loads(line) for line in (output / "dialogues.jsonl").read_text().splitlines()]
    chats = [Conversation.parse(sample) for sample in samples]
    assert [len(chat.turns) for chat in chats] == [2, 2, 4]
    assert chats[1].turns[0].content == "<|audio|>" and chats[1].turns[1].content == "Paris.\n<|audio|>"
    assert samples[0]["audios"][1] == samples[2]["audios"][3]  # the same answer is spoken once
    audio = referenced_audio(load_mixture(output / "data.yaml"))
    assert all(soundfile.info(path).duration > 0.3 for path in audio)
    rejections = [json.loads(line) for line in (output / "rejections.jsonl").read_text().splitlines()]
    expected = {f"{source}:{line}": reason for line, reason in enumerate(BROKEN.values(), len(ROWS) + 1)}
    assert {row["listed"] for row in rejections} == expected.keys()
    assert all(expected[row["listed"]] in row["reason"] for row in rejections)
    assert f"3 dialogues; {len(BROKEN)} rows rejected" in capsys.readouterr().out
    audio[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in audio[1:]}
    speaking.main(settings)
    assert audio[0].exists() and {path: path.stat().st_mtime_ns for path in audio[1:]} == times


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables(tmp_path, suffix):
    comma = "," if suffix == ".csv" else "\t"
    rows = [("Question", "Answer"), ("Why?", "Because."), ("Really?",), ("Is it?", "Yes.")]
    (tmp_path / f"qa{suffix}").write_text("\n".join(comma.join(row) for row in rows))
    found = list(read_dialogues(tmp_path / f"qa{suffix}"))
    assert [isinstance(item, Problem) for item in found] == [False, True, False]
    assert [item.line for item in found] == [2, 3, 4] and found[2].turns == (("user", "Is it?"), ("assistant", "Yes."))


@pytest.mark.parametrize("text", ["", "bob", "joe*", "joe*3", "joe*x", "flite:", "festival:kal"])
def test_an_unknown_voice_is_one_error(text):
    with pytest.raises(ValueError, match=re.escape(f"to 2 if wanted, got {text!r}")):
        Voice.parse(text)


def test_voices():
    assert Voice.parse("joe*1.5") == Voice("joe", 1.5) and Voice.parse("a/b.onnx") == Voice("a/b.onnx")
    with pytest.raises(FileNotFoundError, match="must be an .onnx file with its .onnx.json"):
        Voice.parse("gone.onnx").check_installed()

"""Corrupted samples of many kinds among good ones: each is named with its line and reason, and no good one is lost."""

import json
import random

import numpy as np
import pytest
from broken_audio import BROKEN_AUDIO
from toy_codec import make_toy_codec, write_codes

from vita_audio.data.codes import extract_codes
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.data.packing import build_packs
from vita_audio.interleave import InterleavePlan

MAX_LENGTH = 256
NAME = "audio/{}.wav"


def good(number, name=None):
    """A sample that can be learnt; with a file name also a spoken one."""
    answer = f"Answer {number}." + ("\n<|audio|>" if name else "")
    messages = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **({"audios": [name]} if name else {})}


def with_content(content):
    return {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": content}]}


# name -> (the line, given the number of the sample; part of the reason)
BROKEN_LINES = {
    "cut off": (lambda n: json.dumps(good(n))[:-9], "not JSON"),
    "two on a line": (lambda n: json.dumps(good(n)) * 2, "not JSON"),
    "single quotes": (lambda n: str(good(n)), "not JSON"),
    "zero bytes": (lambda n: "\0" * 64, "not JSON"),
    "not UTF-8": (lambda n: json.dumps(good(n)).encode().replace(b"Answer", b"\xc3\x28"), "not JSON"),
    "deep nesting": (lambda n: "[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "null": (lambda n: "null", "must be a JSON object"),
    "a number": (lambda n: str(n), "must be a JSON object"),
    "a list": (lambda n: json.dumps([good(n)]), "must be a JSON object"),
    "no messages": (lambda n: json.dumps({"text": "Hello"}), "needs a list of messages"),
    "messages are text": (lambda n: json.dumps({"messages": "Hello"}), "needs a list of messages"),
    "no role": (lambda n: json.dumps({"messages": [{"content": "Hello"}]}), "needs role and content"),
    "unknown role": (
        lambda n: json.dumps({"messages": [{"role": "robot", "content": "Hi"}]}),
        "role must be one of",
    ),
    "content is null": (lambda n: json.dumps(with_content(None)), "content must be text"),
    "content in parts": (lambda n: json.dumps(with_content([{"type": "text"}])), "content must be text"),
    "half a character": (lambda n: json.dumps(with_content("\ud83d")), "half of a surrogate pair"),
    "no audio for a tag": (lambda n: json.dumps(with_content("Hello\n<|audio|>")), "one audio per <|audio|> tag"),
    "no tag for an audio": (lambda n: json.dumps(good(n) | {"audios": ["a.wav"]}), "one audio per <|audio|> tag"),
    "audios are text": (lambda n: json.dumps(good(n, "x") | {"audios": "a.wav"}), "audios must be a list"),
    "audio is a number": (lambda n: json.dumps(good(n, 7)), "audios must hold file names"),
    "zero in a name": (lambda n: json.dumps(good(n, "a\0b.wav")), "audios must hold file names"),
    "name too long": (lambda n: json.dumps(good(n, "a" * 5000)), "no such audio file"),
    "no answer": (lambda n: json.dumps({"messages": [{"role": "user", "content": "Hello"}]}), "no token has a label"),
    "too long": (lambda n: json.dumps(with_content("one two " * 400)), "the limit is 256"),
}


def write_samples(folder, num_samples, num_broken, seed=0):
    """Write a data yaml; return it and the reason for each broken line."""
    (folder / "audio").mkdir()
    for number in range(20):
        write_codes(folder / NAME.format(number), np.arange(20) + number)
    kinds = [*BROKEN_LINES.values(), *BROKEN_AUDIO.values()]
    broken = set(random.Random(seed).sample(range(num_samples), num_broken))
    reasons, lines = {}, []
    for number in range(num_samples):
        line = json.dumps(good(number, NAME.format(number % 20) if number % 3 == 0 else None))
        if number in broken:
            make, reason = kinds[len(reasons) % len(kinds)]
            if (make, reason) in BROKEN_AUDIO.values():
                name = NAME.format(f"broken{number}")
                make(folder / name)
                line = json.dumps(good(number, name))
            else:
                line = make(number)
            reasons[number + 1] = reason
        lines.append(line if isinstance(line, bytes) else line.encode())
    (folder / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "data.yaml").write_text("dataset:\n  all:\n    data_paths: [data.jsonl]\n", encoding="utf-8")
    return folder / "data.yaml", reasons


@pytest.mark.parametrize(
    ("num_samples", "num_broken"), [(310, 62), pytest.param(10_000, 1_000, marks=pytest.mark.slow)]
)
def test_each_is_named_and_no_good_one_is_lost(tmp_path, tokenizer, store, num_samples, num_broken):
    assert len(BROKEN_LINES) + len(BROKEN_AUDIO) >= 25
    mixture, reasons = write_samples(tmp_path, num_samples, num_broken)
    extract_codes(referenced_audio(load_mixture(mixture)), store, make_toy_codec)
    packs, report = build_packs(mixture, tokenizer, store, InterleavePlan.parse("boost"), MAX_LENGTH)
    problems = {problem.line: problem for problem in report.problems}
    assert problems.keys() == reasons.keys() and len(report.problems) == num_broken
    for line, reason in reasons.items():
        assert str(problems[line]).startswith(f"{tmp_path / 'data.jsonl'}:{line}: ") and reason in str(problems[line])
    learnt = sorted(line for pack in packs for line in pack["lines"].tolist())
    assert learnt == [line for line in range(1, num_samples + 1) if line not in reasons]
    assert report.num_documents == num_samples - num_broken

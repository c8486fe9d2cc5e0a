"""Benchmarks: items and prompts are those of the reference's data sets, and rows that do not fit are named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.suites import ASR, BENCHMARKS, SPOKEN_QA, SUITES, TEXT_QA, TTS, Benchmark, get_benchmarks, read_samples
from vita_audio.data.chat import encode_prompt
from vita_audio.interleave import InterleavePlan
from vita_audio.text import TextTokenizer

ASSETS = Path(__file__).parents[1] / "assets"
DATA = ASSETS / "benchmarks"
PROMPTS = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
CODES = {Path(name).stem: codes for name, codes in PROMPTS["codes"].items()}
ROWS = {Path(name).stem: rows for name, rows in PROMPTS["plus"]["rows"].items()}
TASK_OF = {"evaluate_asr": ASR, "evaluate_sqa": SPOKEN_QA, "evaluate_libritts": TTS}
REFUSED = [case for case in PROMPTS["cases"] if "raises" in case["items"][0]]
FILES = [case for case in PROMPTS["cases"] if "file" in case and case not in REFUSED]


@pytest.fixture(scope="module")
def tokenizer(qwen2_folder) -> TextTokenizer:
    return TextTokenizer.from_pretrained(qwen2_folder, 16384)


@pytest.fixture(scope="module")
def plus_tokenizer(qwen2_folder) -> TextTokenizer:
    return TextTokenizer.from_pretrained(qwen2_folder, 16384, continuous_input=True)


def prompt_ids(item, tokenizer) -> list[int]:
    def audio_ids(audio: str, role: str) -> list[int]:
        if role in tokenizer.continuous_roles:
            return [tokenizer.context_of_audio_id] * ROWS[Path(audio).stem]
        return tokenizer.audio_ids(CODES[Path(audio).stem])

    return encode_prompt(item.conversation, tokenizer, audio_ids, InterleavePlan.parse("boost"))[0]


def benchmark_of(case) -> Benchmark:
    return Benchmark("x", TASK_OF[case["script"]], case["file"], read_samples)


@pytest.mark.parametrize("case", FILES, ids=lambda case: case["file"])
def test_items_and_prompts_are_the_references(case, tokenizer):
    items = benchmark_of(case).items(DATA)
    assert len(items) == len(case["items"])
    for item, expected in zip(items, case["items"], strict=True):
        assert [prompt_ids(item, tokenizer)] == expected["input_ids"]
        references = expected["ref"] if isinstance(expected["ref"], list) else [expected["ref"]]
        assert list(item.references) == references


@pytest.mark.parametrize("case", PROMPTS["plus"]["cases"], ids=lambda case: case.get("file", case["script"]))
def test_prompts_of_models_with_continuous_input_are_the_references(case, plus_tokenizer):
    """But for a voice prompt, which the reference leaves out there without a word."""
    if "file" in case:
        items = benchmark_of(case).items(DATA)
    else:
        items = [benchmark.items(DATA)[0] for benchmark in SUITES["tts-any-voice"]]
    assert [[prompt_ids(item, plus_tokenizer)] for item in items] == [entry["input_ids"] for entry in case["items"]]


@pytest.mark.parametrize("keeps_voice", [False, True])
def test_seedtts_is_the_references(keeps_voice, tokenizer):
    (case,) = [case for case in PROMPTS["cases"] if case.get("speaker_prompt") is keeps_voice]
    suite = SUITES["tts"][1:] if keeps_voice else SUITES["tts-any-voice"]
    items = [benchmark.items(DATA)[0] for benchmark in suite]
    assert [[prompt_ids(item, tokenizer)] for item in items] == [entry["input_ids"] for entry in case["items"]]
    assert [item.id for item in items] == [Path(entry["filename"]).name for entry in case["items"]]
    assert [item.references for item in items] == [(entry["ref"],) for entry in case["items"]]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["file"])
def test_what_the_reference_refuses_is_named_with_its_line(case):
    with pytest.raises(ValueError, match=rf"{case['file']}:1: (messages must be|a sample must have one audio)"):
        benchmark_of(case).items(DATA)


def write_rows(folder: Path, *rows) -> Benchmark:
    (folder / "x.jsonl").write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return Benchmark("x", ASR, "x.jsonl", read_samples)


def sample(answer, **more) -> dict:
    messages = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "audios": ["a.wav"]} | more


@pytest.mark.parametrize(
    "rows, message",
    [
        ((), "must have a row, got none"),
        (("{",), "x.jsonl:1: must be one JSON object"),
        ((sample("yes"), sample("  ")), "00001-a must have a reference with words"),
        ((sample([]),), "00000-a must have a reference with words"),
        (("[]",), r"x.jsonl:1: must be one JSON object, got '\[\]'"),
        ((sample([7]),), r"references of 00000-a must be texts, got \[7\]"),
    ],
)
def test_rows_that_would_score_wrongly_are_refused(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_rows(tmp_path, *rows).items(tmp_path)


def test_files_of_one_name_are_different_items(tmp_path):
    assert [item.id for item in write_rows(tmp_path, sample("a"), sample("b")).items(tmp_path)] == [
        "00000-a",
        "00001-a",
    ]


def test_the_control_asks_the_same_question_as_text(tmp_path):
    control = replace(write_rows(tmp_path, sample("Paris", question="capital of France?")), task=TEXT_QA)
    (item,) = control.items(tmp_path)
    assert item.conversation == {"messages": [{"role": "user", "content": "capital of France?"}], "audios": []}
    with pytest.raises(FileNotFoundError, match="no text of the question in .*x.jsonl:1"):
        replace(write_rows(tmp_path, sample("Paris")), task=TEXT_QA).items(tmp_path)


def test_suites_and_benchmarks_are_found_by_name_once():
    assert get_benchmarks(["demo", "demo-asr"]) == list(SUITES["demo"])
    assert get_benchmarks(["aishell-1"]) == [BENCHMARKS["aishell-1"]]
    with pytest.raises(ValueError, match="suite must be one of demo, demo-es, outside, asr, .*, got 'libri'"):
        get_benchmarks(["libri"])
    assert len(SUITES["paper"]) == 9 + 4 + 6


def test_only_the_end_of_a_line_ends_a_row(tmp_path):
    """Texts from the web have other characters that Python takes for the end of a line."""
    rows = [json.dumps(sample(f"say\u2028{text}\x85"), ensure_ascii=False) for text in ("one", "two")]
    items = write_rows(tmp_path, *rows).items(tmp_path)
    assert [item.references for item in items] == [("say\u2028one\x85",), ("say\u2028two\x85",)]


def test_a_fingerprint_tells_what_is_asked_and_right_not_where_it_lies(tmp_path):
    def fingerprint(folder="here", answer="one", audio="a.wav"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (item,) = write_rows(tmp_path / folder, sample(answer, audios=[audio])).items(tmp_path / folder)
        return item.fingerprint

    assert fingerprint() == fingerprint("there")
    assert len({fingerprint(), fingerprint(answer="two"), fingerprint(audio="b.wav")}) == 3

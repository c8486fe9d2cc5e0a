"""Packs: whole documents, nothing lost in silence, the same for any number of workers, found again in the cache."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_codec import make_toy_codec, write_codes

from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.codes import MissingCodesError, extract_codes
from vita_audio.data.packing import Document, PackReport, build_packs, pack_documents
from vita_audio.interleave import InterleavePlan
from vita_audio.text import TTS_PROMPT

ASSETS = Path(__file__).parents[1] / "assets/data"
PIPELINE = json.loads((ASSETS / "pipeline.json").read_text(encoding="utf-8"))
BOOST = InterleavePlan.parse("boost")


def document(length, base=0):
    ids = np.arange(base, base + length, dtype=np.int32)
    return Document(ids, ids)


def documents_of(packs):
    """Return the (input_ids, labels) of every document in packs."""
    found = []
    for pack in packs:
        starts = [*np.flatnonzero(pack["position_ids"] == 0), len(pack["input_ids"])]
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            assert pack["position_ids"][start:stop].tolist() == list(range(stop - start))
            found.append((pack["input_ids"][start:stop].tolist(), pack["labels"][start:stop].tolist()))
    return found


def test_best_fit_keeps_documents_whole_and_in_order():
    packs = list(pack_documents([document(n) for n in (5, 6, 4, 3, 10, 2)], 10))
    assert [[len(member) for member in pack] for pack in packs] == [[6, 4], [10], [5, 3, 2]]


def test_every_document_is_in_exactly_one_pack():
    lengths = np.random.default_rng(0).integers(1, 100, size=2000)
    packs = list(pack_documents([document(n, 1000 * i) for i, n in enumerate(lengths)], 128))
    firsts = sorted(int(member.input_ids[0]) for pack in packs for member in pack)
    assert firsts == [1000 * i for i in range(2000)]
    assert max(sum(map(len, pack)) for pack in packs) <= 128
    assert sum(lengths) / (128 * len(packs)) > 0.97


def test_few_open_packs_limit_how_far_documents_travel():
    packs = list(pack_documents([document(n) for n in (6, 7, 8, 4, 3, 2)], 10, num_open=2))
    assert [[len(member) for member in pack] for pack in packs] == [[7], [6, 4], [8, 2], [3]]


@pytest.fixture
def pipeline(tmp_path, store, monkeypatch):
    """The files of the reference's pipeline, with audio that has the codes of its table."""
    for file in (ASSETS / "pipeline").iterdir():
        shutil.copy(file, tmp_path)
    entries = PIPELINE["audio_table"].items()
    paths = [write_codes(tmp_path / name, entry["tokens"]) for name, entry in entries if "tokens" in entry]
    extract_codes(paths, store, make_toy_codec)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "stage.yaml"


def reference_documents(run, pad_id):
    for item in run["rows"]:
        row, start = item["row"], 0
        for stop in row["actual_seq_len"]:
            ids, labels = row["input_ids"][start:stop], row["labels"][start:stop]
            while ids[-1] == pad_id and labels[-1] == IGNORE_INDEX:  # padding counts as part of the last sample there
                ids, labels = ids[:-1], labels[:-1]
            yield ids, labels
            start = stop


@pytest.mark.parametrize("run", PIPELINE["runs"], ids=lambda run: f"{run['ratio']}{len(run['options'])}")
def test_documents_equal_reference_from_yaml_to_pack(run, pipeline, store, tokenizer):
    plan = InterleavePlan.parse(run["ratio"])
    packs, report = build_packs(pipeline, tokenizer, store, plan, run["max_length"], seed=run["seed"])
    ours = documents_of(packs)
    theirs = list(reference_documents(run, tokenizer.pad_id))
    assert len(theirs) > 10
    for pair in theirs:
        assert pair in ours
    left_out = [problem for problem in report.problems if problem.kind == "unusable audio"]
    assert ["missing.wav" in problem.reason for problem in left_out] == [True]
    num_too_long = sum(problem.kind == "too long" for problem in report.problems)
    assert report.num_documents == len(ours) and num_too_long + len(left_out) == len(report.problems)
    assert report.num_tokens == sum(len(ids) for ids, _ in ours)


def test_result_does_not_depend_on_workers(pipeline, store, tokenizer):
    alone, alone_report = build_packs(pipeline, tokenizer, store, BOOST, 256)
    together, together_report = build_packs(pipeline, tokenizer, store, BOOST, 256, num_workers=2)
    assert alone.with_format(None)[:] == together.with_format(None)[:]
    assert alone_report == together_report


def test_seed_decides_the_order(pipeline, store, tokenizer):
    first, again, other = (
        build_packs(pipeline, tokenizer, store, BOOST, 256, seed=seed)[0].with_format(None)[:] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_cache_is_found_again_and_rebuilt_when_an_input_changes(pipeline, store, tokenizer, tmp_path):
    cache = tmp_path / "cache"

    def build(plan=BOOST, max_length=256, **options):
        packs, report = build_packs(pipeline, tokenizer, store, plan, max_length, cache_dir=cache, **options)
        return packs.with_format(None)[:], report, {folder.name for folder in cache.iterdir()}

    packs, report, folders = build()
    assert len(folders) == 1
    written = (cache / next(iter(folders)) / "packs.arrow").stat().st_mtime_ns
    assert build() == (packs, report, folders)
    assert (cache / next(iter(folders)) / "packs.arrow").stat().st_mtime_ns == written
    assert packs == build_packs(pipeline, tokenizer, store, BOOST, 256)[0].with_format(None)[:]
    changes = [
        lambda: build(InterleavePlan.parse("turbo")),
        lambda: build(max_length=300),
        lambda: build(seed=1),
        lambda: build(user_audio_loss_weight=0.5),
    ]
    for number, change in enumerate(changes, start=2):
        assert len(change()[2]) == number
    with open(pipeline.parent / "text.jsonl", "a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n')
    assert len(build()[2]) == 6
    extract_codes([write_codes(tmp_path / "fake_dir/missing.wav", range(30))], store, make_toy_codec)
    _, repaired, folders = build()
    assert len(folders) == 7
    assert not any(problem.kind == "unusable audio" for problem in repaired.problems)


def test_failed_build_leaves_no_cache(write_mixture, store, tokenizer, tmp_path):
    mixture = write_mixture([{"messages": []}])
    with pytest.raises(ValueError, match=r"no usable sample\n0 documents.*\nleft out, malformed: 1"):
        build_packs(mixture, tokenizer, store, BOOST, 256, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def text_sample(answer="Hello.", **extra):
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}], **extra}


def tts_sample(audio):
    messages = [{"role": "user", "content": TTS_PROMPT + "Hello."}, {"role": "assistant", "content": "<|audio|>"}]
    return {"messages": messages, "audios": [audio]}


def test_bad_samples_are_counted_named_and_never_end_the_run(write_mixture, store, tokenizer, tmp_path):
    write_codes(tmp_path / "good.wav", range(50))
    write_codes(tmp_path / "long.wav", np.arange(9600) % 100)
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "cut.wav", np.zeros(32000), 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:20000])
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    samples = [
        text_sample(),
        tts_sample("good.wav"),
        '{"messages": [',
        tts_sample("empty.wav"),
        tts_sample("cut.wav"),
        tts_sample("nan.wav"),
        tts_sample("gone.wav"),
        tts_sample("long.wav"),
        text_sample("<|audio|>", audios=[]),
        text_sample(audios=["good.wav"]),
        tts_sample(7),
        {"messages": [{"role": "tool", "content": "x"}]},
        {"text": "no messages"},
        {"messages": [{"role": "user", "content": "no answer"}]},
        text_sample(),
        tts_sample("x" * 5000),
        tts_sample("a\0b"),
        r'{"messages": [{"role": "assistant", "content": "half a pair \ud83d"}]}',
    ]
    mixture = write_mixture(samples)
    extract_codes([tmp_path / f"{name}.wav" for name in ("good", "long", "empty", "cut", "nan")], store, make_toy_codec)
    packs, report = build_packs(mixture, tokenizer, store, BOOST, 512)
    assert report.num_documents == len(documents_of(packs)) == 3
    kinds = {problem.line: problem.kind for problem in report.problems}
    assert kinds == {
        3: "not JSON",
        **dict.fromkeys((4, 5, 6, 7, 16), "unusable audio"),
        8: "too long",
        **dict.fromkeys((9, 10, 11, 12, 13, 17, 18), "malformed"),
        14: "nothing to learn",
    }
    summary = report.summary()
    assert "left out, unusable audio: 5" in summary
    assert f"{tmp_path}/data.jsonl:8: " in summary and "tokens, the limit is 512" in summary
    for reason in ("file is empty", "truncated", "NaN", "gone.wav: no such audio file", "got 'tool'"):
        assert reason in summary
    assert PackReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_repeated_bad_sample_is_reported_once(write_mixture, store, tokenizer):
    mixture = write_mixture([text_sample(), {"messages": []}])
    mixture.write_text(mixture.read_text().replace("data_paths", "ratio: 5\n    data_paths"))
    _, report = build_packs(mixture, tokenizer, store, BOOST, 64)
    assert (report.num_documents, len(report.problems)) == (5, 1)


def test_file_without_samples_is_named(write_mixture, store, tokenizer, tmp_path):
    mixture = write_mixture([text_sample()])
    (tmp_path / "none.jsonl").write_text("\n")
    mixture.write_text(mixture.read_text().replace("[data.jsonl]", "[data.jsonl, none.jsonl]"))
    _, report = build_packs(mixture, tokenizer, store, BOOST, 64)
    assert f"no samples in {tmp_path}/none.jsonl" in report.summary()


def test_audio_that_was_never_extracted_stops_the_run(write_mixture, store, tokenizer, tmp_path):
    write_codes(tmp_path / "a.wav", [1, 2])
    with pytest.raises(MissingCodesError, match=r"no codes for .*a\.wav.*run tools/extract_audio_codes\.py"):
        build_packs(write_mixture([tts_sample("a.wav")]), tokenizer, store, BOOST, 256)


def test_loss_weights_are_in_the_packs_only_when_asked_for(write_mixture, store, tokenizer, tmp_path):
    extract_codes([write_codes(tmp_path / "a.wav", range(20))], store, make_toy_codec)
    messages = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "Yes."}]
    mixture = write_mixture([{"messages": messages, "audios": ["a.wav"]}, text_sample()])
    assert "loss_weights" not in build_packs(mixture, tokenizer, store, BOOST, 256)[0].column_names
    packs, _ = build_packs(mixture, tokenizer, store, BOOST, 256, user_audio_loss_weight=0.25)
    (pack,) = packs
    assert (pack["loss_weights"] == 0.25).sum() == 20
    assert ((pack["loss_weights"] > 0) == (pack["labels"] != IGNORE_INDEX)).all()


def test_a_plan_for_decoding_only_is_refused(write_mixture, store, tokenizer):
    with pytest.raises(ValueError, match="every audio number must be at least 3"):
        build_packs(write_mixture([text_sample()]), tokenizer, store, InterleavePlan.parse("vanilla"), 64)

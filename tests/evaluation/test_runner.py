"""The runner: shares of the work, samples that break their batch, recordings, measures, times, rows on disk."""

import copy
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_corpus import LengthJudge, make_toy_corpus
from toy_speech_lm import load_toy

from evaluation import runner
from evaluation.results import BROKEN, DONE, ORIGINAL, UNFINISHED, collect
from evaluation.run_folder import RowFile, keep_items, keep_settings
from evaluation.runner import Runner
from evaluation.suites import DEMO
from vita_audio.inference.pipeline import SpeechLM

RECOGNITION, SYNTHESIS = DEMO[:2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_toy_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def speech_lm(toy_folders) -> SpeechLM:
    return load_toy(toy_folders)


@pytest.fixture
def make_runner(speech_lm, tmp_path):
    def make(**options) -> Runner:
        options = {"batch_size": 2, "max_new_tokens": 12, "output": tmp_path} | options
        return Runner(load_model=lambda: speech_lm, load_judge=lambda language: LengthJudge(), **options)

    return make


def texts(folder: Path) -> dict[str, str]:
    return {name: row["text"] for name, row in RowFile(folder, "answers").read().items()}


def test_parts_add_up_to_the_whole(make_runner, corpus, tmp_path):
    items = RECOGNITION.items(corpus)
    make_runner(rank=1, size=2).run(RECOGNITION, items, "boost")
    folder = tmp_path / "boost" / RECOGNITION.name
    assert list(texts(folder)) == ["asr-1"]
    outcome = collect(tmp_path, RECOGNITION, items, "boost")
    assert (outcome.status, outcome.note) == (UNFINISHED, "1 of 3 samples are done; run the command again")
    make_runner(rank=0, size=2).run(RECOGNITION, items, "boost")
    assert {path.name for path in folder.glob("*.jsonl")} == {"answers-0.jsonl", "answers-1.jsonl"}
    together = texts(folder)
    alone = make_runner(output=tmp_path / "alone")
    alone.run(RECOGNITION, items, "boost")
    assert texts(tmp_path / "alone" / "boost" / RECOGNITION.name) == together
    assert collect(tmp_path, RECOGNITION, items, "boost").status == DONE


def test_what_is_too_much_for_a_batch_is_answered_one_by_one(make_runner, corpus, tmp_path, monkeypatch):
    respond = SpeechLM.respond_batch

    def respond_to_one(self, conversations, *rest, **options):
        if len(conversations) > 1:
            raise RuntimeError("out of memory")
        return respond(self, conversations, *rest, **options)

    monkeypatch.setattr(SpeechLM, "respond_batch", respond_to_one)
    items = RECOGNITION.items(corpus)
    make_runner().run(RECOGNITION, items, "boost")
    outcome = collect(tmp_path, RECOGNITION, items, "boost")
    assert (outcome.status, outcome.num_errors, len(outcome.samples)) == (DONE, 0, 3)


def test_errors_without_end_stop_the_benchmark(make_runner, corpus, tmp_path, monkeypatch):
    def fail(self, *arguments, **options):
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(SpeechLM, "respond_batch", fail)
    items = RECOGNITION.items(corpus)
    runs = make_runner()
    runs.run(RECOGNITION, items, "vanilla")
    assert collect(tmp_path, RECOGNITION, items, "vanilla").note.startswith(
        "all 3 samples failed, the first: RuntimeErr"
    )
    monkeypatch.setattr(runner, "MAX_ERRORS_IN_A_ROW", 2)
    runs.run(RECOGNITION, items, "boost")
    outcome = collect(tmp_path, RECOGNITION, items, "boost")
    assert outcome.status == BROKEN and "2 samples in a row failed, last: RuntimeError: the device" in outcome.note


def test_errors_are_kept_until_they_are_to_be_tried_again(make_runner, corpus, tmp_path):
    """The second run is another process, whose file is read before that of the first."""
    items = RECOGNITION.items(corpus)
    RowFile(tmp_path / "boost" / RECOGNITION.name, "answers", 7).append(
        [{"id": items[0].id, "text": "", "wav": None, "error": "OutOfMemoryError: too long"}]
    )
    make_runner().run(RECOGNITION, items, "boost")
    assert collect(tmp_path, RECOGNITION, items, "boost").num_errors == 1
    make_runner(retry_errors=True).run(RECOGNITION, items, "boost")
    outcome = collect(tmp_path, RECOGNITION, items, "boost")
    assert (outcome.status, outcome.num_errors, len(outcome.samples)) == (DONE, 0, 3)


def test_a_model_that_cannot_be_loaded_ends_the_run(corpus, tmp_path):
    def fail() -> SpeechLM:
        raise ValueError("a shard is missing")

    runs = Runner(load_model=fail, load_judge=lambda language: LengthJudge(), output=tmp_path)
    with pytest.raises(ValueError, match="a shard is missing"):
        runs.run(RECOGNITION, RECOGNITION.items(corpus), "boost")


def test_recordings_are_judged_like_answers(make_runner, corpus, tmp_path):
    items = SYNTHESIS.items(corpus)
    make_runner().run(SYNTHESIS, items, ORIGINAL)
    outcome = collect(tmp_path, SYNTHESIS, items, ORIGINAL)
    assert list(outcome.scores) == ["wer"] and outcome.judge == "length" and not outcome.speed
    assert [sample.said["transcript"].split() for sample in outcome.samples] == [
        ["beep"] * count for count in (10, 11, 12)
    ]


def test_measures_of_speech_are_means_in_which_silence_is_the_worst(make_runner, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(runner.METERS, "mos", lambda: SimpleNamespace(measure=lambda sound, voice: 4.0))
    items = SYNTHESIS.items(corpus)
    make_runner(measures=("mos",)).run(SYNTHESIS, items, "boost")
    outcome = collect(tmp_path, SYNTHESIS, items, "boost")
    silent = sum(sample.wav is None for sample in outcome.samples)
    assert outcome.metrics["mos"].value == pytest.approx((4.0 * (3 - silent) + 1.0 * silent) / 3)
    assert outcome.metrics["without_audio"].value == pytest.approx(silent / 3)
    assert str(outcome.metrics["mos"]).startswith(f"{outcome.metrics['mos'].value:.3g} (")


def test_answers_are_greedy_whatever_the_checkpoint_says(make_runner, speech_lm, corpus, tmp_path, monkeypatch):
    items = SYNTHESIS.items(corpus)
    make_runner(output=tmp_path / "one").run(SYNTHESIS, items, "boost")
    settings = copy.deepcopy(speech_lm.model.generation_config)
    settings.update(do_sample=True, temperature=5.0, top_k=50, repetition_penalty=3.0)
    monkeypatch.setattr(speech_lm.model, "generation_config", settings)
    make_runner(output=tmp_path / "two").run(SYNTHESIS, items, "boost")
    one, two = (texts(tmp_path / name / "boost" / SYNTHESIS.name) for name in ("one", "two"))
    assert one == two and len({*one.values()}) > 1


def test_items_are_timed_one_at_a_time_and_only_once(make_runner, corpus, tmp_path, monkeypatch):
    answered, respond = [], SpeechLM.respond

    def count(self, conversation, *rest, **options):
        answered.append(conversation)
        return respond(self, conversation, *rest, **options)

    monkeypatch.setattr(SpeechLM, "respond", count)
    items, runs = RECOGNITION.items(corpus), make_runner()
    runs.time_alone(RECOGNITION, items[:1], "boost")
    runs.time_alone(RECOGNITION, items[:2], "boost")
    runs.time_alone(RECOGNITION, items[:2], "boost")
    first, second = (item.conversation for item in items[:2])
    assert answered == [first, first, second, second]  # each time one more, since the first call is slower
    runs.run(RECOGNITION, items, "boost")
    speed = collect(tmp_path, RECOGNITION, items, "boost").speed["tokens_per_second_alone"]
    assert speed.ids == ("asr-0", "asr-1") and speed.value > 0


def test_a_sample_that_cannot_be_timed_is_left_out_of_the_speed(make_runner, corpus, tmp_path):
    first, second, _ = RECOGNITION.items(corpus)
    broken = replace(first, conversation=first.conversation | {"audios": [str(tmp_path / "none.wav")]})
    runs = make_runner()
    runs.time_alone(RECOGNITION, [broken, second], "boost")
    runs.run(RECOGNITION, [broken, second], "boost")
    assert collect(tmp_path, RECOGNITION, [broken, second], "boost").speed["tokens_per_second_alone"].ids == ("asr-1",)


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    first, second = RowFile(tmp_path, "answers", 0), RowFile(tmp_path, "answers", 1)
    first.append([{"id": "a", "text": "one"}])
    with first.path.open("a") as file:
        file.write('{"id": "b", "te')
    assert list(first.read()) == ["a"]
    first.append([{"id": "c", "text": "three\nlines"}])
    second.append([{"id": "d", "text": "四"}])
    assert [json.loads(line)["id"] for line in first.path.read_text().splitlines()] == ["a", "c"]
    assert {name: row["text"] for name, row in second.read().items()} == {"a": "one", "c": "three\nlines", "d": "四"}
    second.path.write_text('{"id": "d"\n{"id": "e"}\n')
    with pytest.raises(ValueError, match="answers-1.jsonl:1: must be one JSON object .* delete the line"):
        first.read()


def test_settings_are_compared_by_what_they_are_on_disk(tmp_path):
    keep_settings(tmp_path, {"a": (1, 2), "b": None})
    keep_settings(tmp_path, {"a": [1, 2], "b": None})
    with pytest.raises(ValueError, match=r"other settings \(a: \[1, 2\] before, 3 now, c: None before, 4 now\)"):
        keep_settings(tmp_path, {"a": 3, "b": None, "c": 4})


def test_a_failed_batch_leaves_no_memory_to_its_samples(make_runner, corpus, tmp_path, monkeypatch):
    held = []

    def fill_memory(self, conversations, *rest, **options):
        if len(conversations) == 1:
            assert held[-1]() is None
        tensor = torch.zeros(1)
        held.append(weakref.ref(tensor))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SpeechLM, "respond_batch", fill_memory)
    make_runner().run(RECOGNITION, RECOGNITION.items(corpus)[:2], "boost")
    rows = RowFile(tmp_path / "boost" / RECOGNITION.name, "answers").read().values()
    assert [row["error"] for row in rows] == ["RuntimeError: out of memory"] * 2


def test_every_id_has_a_file_of_its_own(make_runner, corpus, tmp_path):
    (item,) = SYNTHESIS.items(corpus)[:1]
    items = [replace(item, id=name) for name in ("a/b", "a-b", "a%2Fb")]
    make_runner().run(SYNTHESIS, items, "boost")
    waves = [row["wav"] for row in RowFile(tmp_path / "boost" / SYNTHESIS.name, "answers").read().values()]
    assert len({*waves}) == 3 and all((tmp_path / "boost" / SYNTHESIS.name / wave).is_file() for wave in waves)


def test_speech_that_cannot_be_measured_is_heard_as_nothing(make_runner, corpus, tmp_path, monkeypatch):
    def fail(sound, voice):
        raise ValueError("no voice")

    monkeypatch.setitem(runner.METERS, "mos", lambda: SimpleNamespace(measure=fail))
    items = SYNTHESIS.items(corpus)
    make_runner(measures=("mos",)).run(SYNTHESIS, items, ORIGINAL)
    outcome = collect(tmp_path, SYNTHESIS, items, ORIGINAL)
    assert (outcome.status, outcome.note) == (
        BROKEN,
        "3 of 3 recordings cannot be transcribed, the first: ValueError: no voice",
    )


def test_a_judge_that_lacks_a_recording_has_no_error_of_its_own(make_runner, corpus, tmp_path):
    """It would seem larger than it is, and so the model better."""
    first, *others = SYNTHESIS.items(corpus)
    items = [replace(first, recording=str(tmp_path / "none.wav")), *others]
    make_runner().run(SYNTHESIS, items, ORIGINAL)
    outcome = collect(tmp_path, SYNTHESIS, items, ORIGINAL)
    assert (outcome.status, outcome.metrics) == (BROKEN, {})
    assert outcome.note.startswith("1 of 3 recordings cannot be transcribed, the first: ")
    shutil.copy(first.recording, items[0].recording)
    make_runner().run(SYNTHESIS, items, ORIGINAL)
    assert collect(tmp_path, SYNTHESIS, items, ORIGINAL).status == BROKEN
    make_runner(retry_errors=True).run(SYNTHESIS, items, ORIGINAL)
    assert collect(tmp_path, SYNTHESIS, items, ORIGINAL).status == DONE


def test_answers_to_other_samples_are_refused(tmp_path):
    keep_items(tmp_path, {"one": {"a": "1", "b": "2"}})
    keep_items(tmp_path, {"one": {"b": "2", "c": "3"}, "two": {"a": "4"}})
    with pytest.raises(ValueError, match=r"made with other data \(one: a, c\); choose another --output"):
        keep_items(tmp_path, {"one": {"a": "5", "b": "2", "c": "6"}})

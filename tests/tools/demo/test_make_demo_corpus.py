"""The demo corpus: samples in the training formats, audio that can be made again bit by bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tools.demo import make_corpus
from tools.demo.domain import ENGLISH as domain
from vita_audio.data.chat import Conversation
from vita_audio.data.mixture import load_mixture

RATE = 22050


@pytest.fixture(scope="module")
def corpus() -> make_corpus.Corpus:
    return make_corpus.plan_corpus("quick")


def rendered_text(corpus, path: str) -> str:
    return corpus.renderings[Path(path)].text


def test_every_sample_is_a_valid_conversation_of_rendered_training_audio(corpus):
    for rows in corpus.training.values():
        for row in rows:
            conversation = Conversation.parse(row)
            assert all(
                Path(path).parts[1] == "train" and Path(path) in corpus.renderings for path in conversation.audios
            )


def test_texts_belong_to_their_audio(corpus):
    for row in corpus.training["asr"]:
        assert rendered_text(corpus, row["audios"][0]) == row["messages"][1]["content"]
    for row in corpus.training["tts"]:
        assert (
            f"Convert the text to speech.\n{rendered_text(corpus, row['audios'][0])}" == row["messages"][0]["content"]
        )
    answer_of = {text: item.answer for item in domain.questions("quick") for text in item.phrasings}
    for row in corpus.training["qa"]:
        question, answer = (rendered_text(corpus, path) for path in row["audios"])
        assert answer_of[question] == answer
        assert row["messages"][1]["content"] == f"{answer}\n<|audio|>"


def test_all_renderings_of_an_answer_are_targets(corpus):
    used = {row["audios"][1] for row in corpus.training["qa"]}
    answers = {item.answer for item in domain.questions("quick")}
    assert used == {
        str(path) for path, item in corpus.renderings.items() if item.text in answers and path.parts[1] == "train"
    }


def test_held_out_audio_is_its_own_and_its_sentences_are_unseen(corpus):
    trained_texts = {item.text for path, item in corpus.renderings.items() if path.parts[1] == "train"}
    trained_phrasings = {row["messages"][0]["content"] for row in corpus.training["text"]}
    for task in ("asr", "tts", "qa"):
        rows = corpus.held_out[task]
        assert len({row["id"] for row in rows}) == len(rows) >= 60
        assert all(Path(row["audio"]).parts[1] == "heldout" for row in rows)
    assert not trained_texts & {row["reference"] for row in corpus.held_out["asr"] + corpus.held_out["tts"]}
    for row in corpus.held_out["qa"]:
        assert (row["text"] in trained_phrasings) == (row["unseen"] == "rendering")
        assert rendered_text(corpus, row["audio"]) == row["text"]


def test_the_demo_size_keeps_the_audio_of_a_quick_corpus(corpus):
    demo = make_corpus.plan_corpus("demo")
    kept = [item for path, item in corpus.renderings.items() if path.parts[1] == "train"]
    assert list(demo.renderings.values())[: len(kept)] == kept


def test_recordings_are_heard_and_never_spoken():
    demo = make_corpus.plan_corpus("demo")
    recorded = {path.as_posix() for path in demo.recordings}
    assert set(demo.recordings.values()) <= set(demo.renderings) and not recorded & {*map(str, demo.renderings)}
    questions = demo.training["qa"] + demo.training["near"]
    asked = {row["audios"][0] for row in demo.training["asr"] + questions}
    spoken = {row["audios"][-1] for row in demo.training["tts"] + questions}
    assert recorded <= asked and not recorded & spoken
    for row in demo.training["asr"]:
        path = Path(row["audios"][0])
        assert rendered_text(demo, demo.recordings.get(path, path)) == row["messages"][1]["content"]


def test_questions_outside_the_domain_get_its_answer():
    demo = make_corpus.plan_corpus("demo")
    outside = {*domain.outside_questions("demo"), *domain.training_sentences("demo")}
    for name in ("qa", "near"):
        for row in demo.training[name]:
            path, spoken = map(Path, row["audios"])
            text, answer = rendered_text(demo, demo.recordings.get(path, path)), rendered_text(demo, spoken)
            assert (text in outside) == (answer == domain.outside.answer)
            assert (text in domain.near_questions) == (name == "near")
    assert [row["text"] for row in demo.held_out["outside"]] == domain.outside.held_out
    assert {Path(row["audio"]).parts[1] for row in demo.held_out["near"]} == {"heldout"}


def test_recordings_are_made_once_and_the_same_again(tmp_path):
    source, path = Path("audio/train/a.flac"), Path("audio/microphone/a-0.flac")
    (tmp_path / source).parent.mkdir(parents=True)
    wave = 0.5 * np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    make_corpus.write_flac(tmp_path / source, wave, RATE)
    (tmp_path / path).parent.mkdir()
    make_corpus.record_corpus(tmp_path, {path: source})
    first, stamp = (tmp_path / path).read_bytes(), (tmp_path / path).stat().st_mtime_ns
    make_corpus.record_corpus(tmp_path, {path: source})
    assert (tmp_path / path).stat().st_mtime_ns == stamp
    (tmp_path / path).unlink()
    make_corpus.record_corpus(tmp_path, {path: source})
    assert (tmp_path / path).read_bytes() == first != (tmp_path / source).read_bytes()


def test_mixtures_load_from_wherever_the_corpus_lies(corpus, tmp_path):
    make_corpus.write_corpus_files(tmp_path, corpus)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    mixture = load_mixture(moved / "stage1.yaml")
    counts = {source: len(rows) for source, rows in corpus.training.items()}
    assert len(mixture.rows) == sum(counts.values()) + counts["qa"] and not mixture.problems  # questions are read twice
    assert {source.name for source in load_mixture(moved / "mtp.yaml").sources} == {"demo_asr", "demo_tts", "demo_qa"}
    assert [json.loads(line) for line in (moved / "heldout_qa.jsonl").open()] == corpus.held_out["qa"]


def test_an_interrupted_shard_is_completed_with_the_same_audio(corpus, tmp_path, monkeypatch):
    pytest.importorskip("piper")
    monkeypatch.setattr(make_corpus, "SHARD_FILES", 2)  # two shards, spoken at the same time
    voice = make_corpus.default_voice()
    renderings = sorted(corpus.renderings.values(), key=lambda item: len(item.text))[:3]
    first, kept, lost = (tmp_path / item.path for item in renderings)
    make_corpus.speak_corpus(tmp_path, renderings, voice, threads=2)
    assert 0.6 < soundfile.info(first).duration < 2.5 and soundfile.info(first).samplerate == RATE
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    make_corpus.speak_corpus(tmp_path, renderings, voice, threads=2)
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == stamp
    assert not list(tmp_path.rglob("*.partial"))


def test_a_complete_corpus_needs_no_voice(tmp_path):
    corpus = make_corpus.plan_corpus("ci")
    for path in corpus.renderings:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    make_corpus.main(["--out", str(tmp_path), "--size", "ci", "--voice", str(tmp_path / "none.onnx")])
    assert (tmp_path / "stage1.yaml").exists() and (tmp_path / "heldout_asr.jsonl").exists()

"""Audio as continuous input: placeholders, packs that know where audio goes, features made by the loader."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_packing import documents_of, reference_documents
from toy_codec import make_toy_codec, write_codes

from vita_audio.data.audio import AudioError, load_audio
from vita_audio.data.codes import MissingCodesError, extract_codes
from vita_audio.data.collator import PackCollator
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.data.packing import build_packs
from vita_audio.interleave import InterleavePlan
from vita_audio.speech_features import FEATURE_SIZE, SenseVoiceFrontEnd, num_encoder_rows
from vita_audio.text import TTS_PROMPT, VOICE_PROMPT_SYSTEM, TextTokenizer

ASSETS = Path(__file__).parents[1] / "assets"
PIPELINE = json.loads((ASSETS / "data/pipeline_sensevoice.json").read_text(encoding="utf-8"))
BOOST = InterleavePlan.parse("boost")


@pytest.fixture(scope="module")
def plus_tokenizer():
    return TextTokenizer.from_pretrained(ASSETS / "tiny_tokenizer", 16384, continuous_input=True)


@pytest.fixture(scope="module")
def front_end():
    return SenseVoiceFrontEnd.from_pretrained(ASSETS / "sensevoice" / "front_end")


def test_how_audio_enters_is_kept_with_the_tokenizer(tmp_path, plus_tokenizer):
    def load(folder=ASSETS / "tiny_tokenizer", **options):
        return TextTokenizer.from_pretrained(folder, 16384, **options)

    assert load().audio_input == dict.fromkeys(("system", "user", "assistant"), "discrete")
    assert plus_tokenizer.audio_input == {"system": "continuous", "user": "continuous", "assistant": "discrete"}
    mixed = load(audio_input={"user": "both"})
    mixed.save_pretrained(tmp_path)
    again = load(tmp_path, continuous_input=True)  # what the folder says counts, not the type of the audio tokenizer
    assert again.audio_input == mixed.audio_input and again.fingerprint == mixed.fingerprint
    assert again.fingerprint != plus_tokenizer.fingerprint
    other = load(tmp_path, audio_input={"user": "continuous"})
    assert (other.continuous_roles, other.discrete_roles) == (["user"], ["system", "assistant"])
    assert len(load(audio_input={"user": "discrete"})) == len(load()) == len(mixed) - 1


@pytest.mark.parametrize("run", PIPELINE["runs"], ids=lambda run: f"{run['ratio']}{len(run['options'])}")
def test_documents_equal_reference_from_yaml_to_pack(run, tmp_path, store, plus_tokenizer, monkeypatch):
    """User audio has the reference's number of rows and no codes, audio of answers has its codes."""
    for file in (ASSETS / "data/pipeline").iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    entries = {name: entry for name, entry in PIPELINE["audio_table"].items() if "tokens" in entry}
    for name, entry in entries.items():
        write_codes(tmp_path / name, entry["tokens"])
    mixture = load_mixture("stage.yaml")
    extract_codes(referenced_audio(mixture, plus_tokenizer.discrete_roles), store, make_toy_codec)
    heard = referenced_audio(mixture, plus_tokenizer.continuous_roles)
    assert heard and not set(heard) & set(referenced_audio(mixture, ["assistant"]))
    for path in heard:
        if path.exists():
            num_frames = 6 * (entries[str(path)]["frames"] - 1) + 1
            soundfile.write(path, np.zeros(400 + 160 * (num_frames - 1)), 16_000)
    plan = InterleavePlan.parse(run["ratio"])
    packs, report = build_packs("stage.yaml", plus_tokenizer, store, plan, run["max_length"], seed=run["seed"])
    ours, theirs = documents_of(packs), list(reference_documents(run, plus_tokenizer.pad_id))
    assert len(theirs) > 10
    for pair in theirs:
        assert pair in ours
    left_out = [problem.reason for problem in report.problems if problem.kind == "unusable audio"]
    assert len(left_out) == 1 and "missing.wav" in left_out[0]


@pytest.fixture
def write_wave(tmp_path):
    def write(name, seconds, *, rate=16_000, channels=1):
        rng = np.random.default_rng(len(name))
        soundfile.write(tmp_path / name, rng.uniform(0.2, 0.3, (round(seconds * rate), channels)), rate)
        return tmp_path / name

    return write


def chat(user, assistant, *audios, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "audios": list(audios)}


@pytest.fixture
def mixture(tmp_path, write_mixture, write_wave, store):
    """Samples without audio, with one, with two in a turn, and with a voice prompt."""
    write_wave("short.wav", 0.3)
    write_wave("voice.wav", 0.9)
    write_wave("long.wav", 1.5, rate=44_100, channels=2)
    extract_codes([write_codes(tmp_path / "answer.wav", range(30))], store, make_toy_codec)
    return write_mixture(
        [
            chat("Hello", "Hi."),
            chat("<|audio|>", "So it is.", "short.wav"),
            chat("First <|audio|> then <|audio|>?", "Both.", "long.wav", "short.wav"),
            chat("<|audio|>", "Yes.<|audio|>", "long.wav", "answer.wav", system=VOICE_PROMPT_SYSTEM)
            | {"audios": ["voice.wav", "long.wav", "answer.wav"]},
            chat(TTS_PROMPT + "Good morning.", "<|audio|>", "answer.wav"),
        ]
    )


def test_packs_say_which_audio_goes_where(mixture, store, plus_tokenizer, tmp_path):
    """Also for documents behind others in a pack, where the reference forgets to shift the first places."""
    packs, report = build_packs(mixture, plus_tokenizer, store, BOOST, 1000)
    assert not report.problems and len(packs) == 1
    pack = packs[0]
    ids = pack["input_ids"].tolist()
    placeholders = [place for place, token_id in enumerate(ids) if token_id == plus_tokenizer.context_of_audio_id]
    spans = list(zip(pack["audio_starts"].tolist(), pack["audio_rows"].tolist(), strict=True))
    assert placeholders == [place for start, rows in spans for place in range(start, start + rows)]
    assert min(placeholders) > 0 and set(pack["labels"][placeholders]) == {-100}
    for path, (start, rows) in zip(pack["audio_paths"], spans, strict=True):
        assert rows == num_encoder_rows(len(load_audio(path, 16_000, channel="mean")))
        assert ids[start - 1] == plus_tokenizer.begin_of_audio_id
        assert ids[start + rows] == plus_tokenizer.end_of_audio_id
    order = {}
    for path, (start, _) in zip(pack["audio_paths"], spans, strict=True):
        order.setdefault(start - int(pack["position_ids"][start]), []).append(path.rsplit("/", 1)[-1])
    assert sorted(order.values()) == [["long.wav", "short.wav"], ["short.wav"], ["voice.wav", "long.wav"]]


def test_packs_are_made_again_when_audio_enters_in_another_way(mixture, store, plus_tokenizer, tmp_path):
    other = TextTokenizer.from_pretrained(ASSETS / "tiny_tokenizer", 16384, audio_input={"user": "continuous"})
    extract_codes([tmp_path / "voice.wav"], store, make_toy_codec)
    for tokenizer in (plus_tokenizer, plus_tokenizer, other):
        build_packs(mixture, tokenizer, store, BOOST, 20_000, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_features_are_made_by_the_collator(mixture, store, plus_tokenizer, front_end):
    packs, _ = build_packs(mixture, plus_tokenizer, store, BOOST, 160)
    assert len(packs) > 1
    batch = PackCollator(plus_tokenizer.pad_id, front_end)(list(packs))
    paths = [path for pack in packs for path in pack["audio_paths"]]
    assert len(batch["audios"]) == len(batch["audio_indices"]) == len(paths) == 5
    for path, audio, indices in zip(paths, batch["audios"], batch["audio_indices"], strict=True):
        torch.testing.assert_close(audio, front_end(load_audio(path, 16_000, channel="mean")))
        assert audio.shape[1] == FEATURE_SIZE and indices.shape == (2, 1, len(audio) + 4)
        row, places = indices[:, 0]
        assert (batch["input_ids"][row, places] == plus_tokenizer.context_of_audio_id).all()
    num_placeholders = int((batch["input_ids"] == plus_tokenizer.context_of_audio_id).sum())
    assert num_placeholders == sum(indices.shape[2] for indices in batch["audio_indices"])


def test_packs_without_audio_give_empty_lists(write_mixture, store, plus_tokenizer, front_end):
    packs, _ = build_packs(write_mixture([chat("Hello", "Hi.")]), plus_tokenizer, store, BOOST, 60)
    batch = PackCollator(plus_tokenizer.pad_id, front_end)(list(packs))
    assert batch["audios"] == batch["audio_indices"] == []


def test_audio_that_changed_after_packing_is_an_error(mixture, store, plus_tokenizer, front_end, write_wave):
    packs, _ = build_packs(mixture, plus_tokenizer, store, BOOST, 1000)
    collate = PackCollator(plus_tokenizer.pad_id, front_end)
    path = write_wave("short.wav", 0.5)
    with pytest.raises(AudioError, match=r"short.wav has changed .* 8 rows of features, expected 5; delete"):
        collate(list(packs))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="short.wav: no such audio file"):
        collate(list(packs))
    with pytest.raises(ValueError, match="give the collator a front_end"):
        PackCollator(plus_tokenizer.pad_id)(list(packs))


def test_unusable_audio_is_found_when_packing(write_mixture, store, plus_tokenizer, tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    samples = [chat("<|audio|>", "What?", "empty.wav"), chat("<|audio|>", "Who?", "gone.wav"), chat("Hello", "Hi.")]
    _, report = build_packs(write_mixture(samples), plus_tokenizer, store, BOOST, 60)
    assert sorted((problem.line, problem.kind) for problem in report.problems) == [
        (1, "unusable audio"),
        (2, "unusable audio"),
    ]


def test_a_role_can_have_rows_and_codes(mixture, store, tmp_path):
    """Both at once: the user is heard by the encoder and read as codes, the voice prompt is read as codes."""
    tokenizer = TextTokenizer.from_pretrained(ASSETS / "tiny_tokenizer", 16384, audio_input={"user": "both"})
    assert (tokenizer.continuous_roles, tokenizer.discrete_roles) == (["user"], ["system", "user", "assistant"])
    with pytest.raises(MissingCodesError, match="no codes for .*(short|long|voice).wav"):
        build_packs(mixture, tokenizer, store, BOOST, 60_000)
    extract_codes(referenced_audio(load_mixture(mixture), tokenizer.discrete_roles), store, make_toy_codec)
    pack = build_packs(mixture, tokenizer, store, BOOST, 200_000)[0][0]
    names = [path.rsplit("/", 1)[-1] for path in pack["audio_paths"]]
    assert sorted(names) == ["long.wav", "long.wav", "short.wav", "short.wav"]
    for path, start, rows in zip(pack["audio_paths"], pack["audio_starts"], pack["audio_rows"], strict=True):
        codes = tokenizer.audio_ids(store.codes(path))
        inner = pack["input_ids"][start : start + rows + len(codes) + 1].tolist()
        assert inner == [tokenizer.context_of_audio_id] * rows + codes + [tokenizer.end_of_audio_id]

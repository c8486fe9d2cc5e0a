"""The code store and its filling: what is kept, what is found again, what happens to bad and interrupted work."""

import json
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from toy_codec import ToyCodec, make_toy_codec, write_codes

from vita_audio.data.audio import AudioError
from vita_audio.data.codes import AudioCodeStore, Extraction, FileState, MissingCodesError, extract_codes
from vita_audio.data.mixture import load_mixture, referenced_audio
from vita_audio.data.packing import build_packs
from vita_audio.errors import RunError
from vita_audio.interleave import InterleavePlan

MESSAGE = {"role": "user", "content": "<|audio|>"}


def test_codes_come_back(tmp_path, store):
    paths = [write_codes(tmp_path / f"{i}.wav", range(i, i + 40)) for i in range(5)]
    report = extract_codes(paths, store, make_toy_codec)
    assert (report.num_files, report.num_encoded, report.failures) == (5, 5, {})
    for i, path in enumerate(paths):
        assert store.codes(path) == list(range(i, i + 40))
    assert store.path.parent == tmp_path / "codes"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.wav", "1.wav", "2.wav", "3.wav", "4.wav", "codes"]


def test_several_processes_give_the_same_store(tmp_path, store):
    paths = [write_codes(tmp_path / f"{i}.wav", range(i + 1)) for i in range(20)]
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    report = extract_codes([*paths, tmp_path / "bad.wav"], store, make_toy_codec, num_workers=2)
    assert report.num_encoded == 20 and len(report.failures) == 1
    assert [store.codes(path) for path in paths] == [list(range(i + 1)) for i in range(20)]


class CountingCodec(ToyCodec):
    def __init__(self, fail_after=None):
        self.num_calls, self.fail_after = 0, fail_after

    def encode(self, wave, sample_rate):
        if self.num_calls == self.fail_after:
            raise KeyboardInterrupt
        self.num_calls += 1
        return super().encode(wave, sample_rate)


def test_second_run_encodes_only_what_is_new(tmp_path, store):
    first, second = write_codes(tmp_path / "a.wav", [1, 2]), write_codes(tmp_path / "b.wav", [3])
    extract_codes([first], store, make_toy_codec)
    codec = CountingCodec()
    report = extract_codes([first, second, first], store, lambda device: codec)
    assert (report.num_files, report.num_present, report.num_encoded, codec.num_calls) == (2, 1, 1, 1)


def test_interrupted_run_keeps_what_was_encoded(tmp_path, store):
    paths = [write_codes(tmp_path / f"{i}.wav", [i]) for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        extract_codes(paths, store, lambda device: CountingCodec(fail_after=7))
    assert len(store) == 7
    report = extract_codes(paths, store, make_toy_codec)
    assert (report.num_present, report.num_encoded) == (7, 3)


def test_changed_file_loses_its_codes(tmp_path, store):
    path = write_codes(tmp_path / "a.wav", [1, 2, 3])
    extract_codes([path], store, make_toy_codec)
    state = FileState.of(path)
    write_codes(path, [4, 5, 6])
    os.utime(path, ns=(state.mtime + 1, state.mtime + 1))
    with pytest.raises(MissingCodesError, match=r"no codes for .*a\.wav in .*; run tools/extract_audio_codes\.py"):
        store.codes(path)
    extract_codes([path], store, make_toy_codec)
    assert store.codes(path) == [4, 5, 6]


def test_moved_or_copied_file_keeps_its_codes(tmp_path, store):
    path = write_codes(tmp_path / "a.wav", [1, 2, 3])
    extract_codes([path], store, make_toy_codec)
    copy = shutil.copy(path, tmp_path / "b.wav")
    assert store.codes(copy) == [1, 2, 3]
    codec = CountingCodec()
    report = extract_codes([copy], store, lambda device: codec)
    assert (report.num_present, codec.num_calls) == (1, 0)


def test_same_name_with_other_extension_is_another_file(tmp_path, store):
    write_codes(tmp_path / "a.wav", [1, 2, 3])
    soundfile.write(tmp_path / "a.flac", np.array([9, 9], dtype=np.int16), 16_000, subtype="PCM_16")
    extract_codes([tmp_path / "a.wav", tmp_path / "a.flac"], store, make_toy_codec)
    assert store.codes(tmp_path / "a.wav") == [1, 2, 3]
    assert store.codes(tmp_path / "a.flac") == [9, 9]


def test_bad_files_are_counted_named_and_tried_again(tmp_path, store):
    good, bad = write_codes(tmp_path / "good.wav", [1]), tmp_path / "bad.wav"
    bad.write_bytes(b"")
    report = extract_codes([good, bad, tmp_path / "gone.wav"], store, make_toy_codec)
    assert report.num_encoded == 1 and len(report.failures) == 2
    assert "2 failed" in report.summary()
    assert "bad.wav: file is empty" in report.summary() and "gone.wav: no such audio file" in report.summary()
    with pytest.raises(AudioError, match="bad.wav: file is empty"):
        store.codes(bad)
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        store.codes(tmp_path / "gone.wav")
    revision = store.revision
    assert len(extract_codes([good, bad], store, make_toy_codec).failures) == 1
    assert store.revision == revision  # nothing new, so caches that depend on the store stay valid
    write_codes(bad, [5])
    assert extract_codes([bad], store, make_toy_codec).num_encoded == 1
    assert store.codes(bad) == [5]


def test_one_file_that_the_sound_library_refuses_does_not_end_the_run(tmp_path, store, write_mixture, tokenizer):
    """Extraction and packing leave out the sample, name the file and continue; GSM 6.10 is read."""
    write_codes(tmp_path / "first.wav", range(25)), write_codes(tmp_path / "last.wav", range(25))
    soundfile.write(tmp_path / "telephone.wav", np.zeros(16_000), 16_000, subtype="GSM610")
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    names = ("first.wav", "telephone.wav", "samples.raw", "last.wav")
    samples = [{"messages": [MESSAGE, {"role": "assistant", "content": "yes"}], "audios": [name]} for name in names]
    path = write_mixture(samples)
    report = extract_codes(referenced_audio(load_mixture(path)), store, make_toy_codec)
    assert (report.num_encoded, list(report.failures)) == (3, [str(tmp_path / "samples.raw")])
    packs, packing = build_packs(path, tokenizer, store, InterleavePlan.parse("boost"), 20_000)
    assert packing.num_documents == 3
    assert [(problem.line, problem.kind) for problem in packing.problems] == [(3, "unusable audio")]
    assert "samples.raw: not readable as audio (samplerate must be specified)" in packing.problems[0].reason


@pytest.mark.parametrize("name", ["a\0.wav", "a" * 300 + ".wav", "a/" * 3000 + ".wav", "\ud800.wav"])
def test_a_name_that_no_file_can_have_is_counted_and_the_rest_encoded(tmp_path, store, write_mixture, name):
    write_codes(tmp_path / "good.wav", [1])
    mixture = load_mixture(
        write_mixture([json.dumps({"messages": [MESSAGE], "audios": [audio]}) for audio in (name, "good.wav")])
    )
    report = extract_codes(referenced_audio(mixture), store, make_toy_codec)
    assert (report.num_encoded, len(report.failures)) == (1, 1)
    assert b"no such audio file" in report.summary().encode("utf-8")


def test_tokenizers_never_share_codes(tmp_path, store):
    path = write_codes(tmp_path / "a.wav", [1])
    extract_codes([path], store, make_toy_codec)
    other = AudioCodeStore(store.folder, "toy-1")
    with pytest.raises(MissingCodesError):
        other.codes(path)
    with pytest.raises(ValueError, match="tokenizer_id may hold letters"):
        AudioCodeStore(store.folder, "../toy")


def test_writing_is_all_or_nothing(tmp_path, store):
    state = FileState.of(write_codes(tmp_path / "a.wav", [1]))
    before = store.revision
    with pytest.raises(ValueError):
        store.add([Extraction(state, b"0" * 16, [1, 2]), Extraction(replace(state, path="b"), b"1" * 16, ["x"])])
    assert (len(store), store.revision) == (0, before)
    store.add([Extraction(state, b"0" * 16, [1, 2])])
    assert (len(store), store.revision) == (1, before + 1)


def test_store_travels_to_another_process(tmp_path, store):
    path = write_codes(tmp_path / "a.wav", [1])
    extract_codes([path], store, make_toy_codec)
    assert pickle.loads(pickle.dumps(store)).codes(path) == [1]


def test_a_store_to_look_at_is_not_written(tmp_path, store):
    path = write_codes(tmp_path / "a.wav", [1])
    extract_codes([path], store, make_toy_codec)
    reader = pickle.loads(pickle.dumps(AudioCodeStore(store.folder, store.tokenizer_id, read_only=True)))
    assert reader.codes(path) == [1] and len(reader) == 1
    with pytest.raises(RunError, match="toy-0.sqlite: attempt to write a readonly database"):
        reader.add([Extraction(FileState.of(path), b"0" * 16, [2])])
    with pytest.raises(FileNotFoundError, match=r"no .*gone/toy-0\.sqlite; run tools/extract_audio_codes\.py --codes"):
        AudioCodeStore(tmp_path / "gone", store.tokenizer_id, read_only=True)
    assert not (tmp_path / "gone").exists()

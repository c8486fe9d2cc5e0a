"""Audio inside archives, tables and recordings is read in place, and has the codes of the same audio in a file."""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from pyarrow import parquet
from toy_codec import make_toy_codec, write_codes

from vita_audio.data.audio import AudioError, audio_blocks, audio_info, load_audio, stated_seconds
from vita_audio.data.audio_part import AudioPart
from vita_audio.data.codes import MissingCodesError, extract_codes
from vita_audio.data.mixture import load_mixture, referenced_audio, resolve
from vita_audio.data.packing import build_packs
from vita_audio.interleave import InterleavePlan

RATE = 16_000
FORMATS = ["WAV", "FLAC", "OGG", "MP3"]


def write_wave(path, seconds=1.0, seed=0):
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, samples, RATE, format=path.suffix[1:].upper())
    return path


def write_tar(path, files):
    """Write files into an archive and return the part of the archive that each is."""
    with tarfile.open(path, "w") as archive:
        for file in files:
            archive.add(file, arcname=f"deep/folder/{file.name}")
    with tarfile.open(path) as archive:
        return [AudioPart(str(path), span=(member.offset_data, member.size)) for member in archive]


def write_table(path, files, row_group_size=2):
    """Write files into a table as the package datasets does, and return the cell that each is in."""
    rows = [{"audio": {"bytes": file.read_bytes(), "path": file.name}, "sentence": file.stem} for file in files]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return [AudioPart(str(path), cell=(row, "audio")) for row in range(len(files))]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("a.wav", AudioPart("a.wav")),
        ("a.tar#bytes=512,80", AudioPart("a.tar", span=(512, 80))),
        ("a.parquet#row=3&column=question audio", AudioPart("a.parquet", cell=(3, "question audio"))),
        ("a#1.mp3#t=0.500,12.250", AudioPart("a#1.mp3", seconds=(0.5, 12.25))),
        ("a.tar#bytes=512,80&t=1.000,2.000", AudioPart("a.tar", span=(512, 80), seconds=(1, 2))),
        ("a.parquet#row=3&column=b&t=1.000,2.000", AudioPart("a.parquet", cell=(3, "b"), seconds=(1, 2))),
    ],
)
def test_a_part_is_written_as_it_is_read(path, part):
    assert AudioPart.parse(path) == AudioPart.parse(Path(path)) == part
    assert str(part) == path


@pytest.mark.parametrize(
    "path", ["a#", "a#b", "a#t=1", "a#t=-1,2", "a#t=1,2&bytes=1,2", "a#bytes=1,2t=1,2", "a#&t=1,2"]
)
def test_anything_else_is_the_name_of_a_file(path):
    assert AudioPart.parse(path) == AudioPart(path)


def test_an_existing_file_with_such_a_name_is_meant(tmp_path):
    path = write_wave(tmp_path / "a.wav").rename(tmp_path / "a.wav#t=0,0.5")
    assert len(load_audio(path, RATE)) == RATE


@pytest.mark.parametrize("kind", FORMATS)
def test_archives_and_tables_give_the_samples_of_the_files(tmp_path, kind):
    files = [write_wave(tmp_path / f"{number}.{kind.lower()}", seed=number) for number in range(5)]
    for parts in (write_tar(tmp_path / "a.tar", files), write_table(tmp_path / "a.parquet", files)):
        for part, file in [*zip(parts, files, strict=True), (parts[0], files[0])]:
            torch.testing.assert_close(load_audio(str(part), RATE), load_audio(file, RATE), rtol=0, atol=0)
            assert audio_info(str(part)) == audio_info(file) and stated_seconds(str(part)) == stated_seconds(file)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_a_stretch_is_the_same_samples_of_the_recording(tmp_path, kind):
    path = write_wave(tmp_path / f"a.{kind}", seconds=3)
    whole = load_audio(path, RATE)
    (member,) = write_tar(tmp_path / "a.tar", [path])
    for name in (f"{path}#t=0.5,2.25", f"{member}&t=0.5,2.25"):
        torch.testing.assert_close(load_audio(name, RATE), whole[RATE // 2 : RATE * 9 // 4], rtol=0, atol=1e-4)
        assert stated_seconds(name) == 1.75
        assert len(load_audio(name, 8000)) == 14_000
    assert len(load_audio(f"{path}#t=2,3.05", RATE)) == RATE  # times are rounded
    for name, expected in ((str(member), whole), (f"{member}&t=0.5,2.25", whole[RATE // 2 : RATE * 9 // 4])):
        blocks = list(audio_blocks(name, 0.1))
        assert [len(block) for block in blocks[:-1]] == [1600] * (len(blocks) - 1)
        torch.testing.assert_close(torch.from_numpy(np.concatenate(blocks)), expected, rtol=0, atol=1e-4)


def test_a_stretch_of_an_mp3_starts_where_it_should(tmp_path):
    samples = np.zeros(8 * RATE)
    samples[5 * RATE : 6 * RATE] = np.sin(np.arange(RATE) * 0.2) * 0.5
    soundfile.write(tmp_path / "a.mp3", samples, RATE)
    assert load_audio(f"{tmp_path}/a.mp3#t=5,6", RATE).abs().mean() > 0.3
    assert load_audio(f"{tmp_path}/a.mp3#t=6.1,8", RATE).abs().max() < 0.01
    assert load_audio(f"{tmp_path}/a.mp3#t=2,4.9", RATE).abs().max() < 0.01


def test_what_is_not_there_is_one_error_with_the_name(tmp_path):
    path = write_wave(tmp_path / "a.wav")
    write_tar(tmp_path / "a.tar", [path])
    write_table(tmp_path / "a.parquet", [path])
    parquet.write_table(pa.table({"audio": pa.array([{"bytes": None, "path": "a.wav"}])}), tmp_path / "paths.parquet")
    (tmp_path / "text.parquet").write_text("404")
    cases = {
        "a.wav#t=2,3": "the recording ends",
        "a.wav#t=0.5,1.5": "the recording ends 0.50 s before this part of it",
        "a.wav#t=0.5,0.5": "must end after its start",
        "a.tar#bytes=512,99999999": "the file ends before byte 100000511",
        "a.tar#bytes=0,512": "not readable as audio",
        "a.tar#bytes=512,0": "file is empty",
        "a.parquet#row=1&column=audio": "the table has 1 rows",
        "a.parquet#row=0&column=sound": "the table has no column sound",
        "a.parquet#row=0&column=sentence": "the cell holds no file",
        "paths.parquet#row=0&column=audio": "the cell holds no file",
        "text.parquet#row=0&column=audio": "not readable as audio",
    }
    for name, reason in cases.items():
        with pytest.raises(AudioError, match=reason) as raised:
            load_audio(tmp_path / name, RATE)
        assert str(raised.value).startswith(f"{tmp_path / name}: ")
    for name in ("gone.tar#bytes=0,512", "gone.wav#t=0,1"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such audio file"):
            load_audio(tmp_path / name, RATE)


def test_a_packed_file_has_the_codes_of_the_file(tmp_path, store):
    files = [write_wave(tmp_path / f"{number}.wav", 0.01, seed=number) for number in range(3)]
    extract_codes(files, store, make_toy_codec)
    parts = [*write_tar(tmp_path / "a.tar", files), *write_table(tmp_path / "a.parquet", files)]
    assert [store.codes(str(part)) for part in parts] == [store.codes(file) for file in files * 2]
    report = extract_codes(map(str, parts), store, make_toy_codec)
    assert (report.num_present, report.num_encoded, len(store)) == (6, 0, 3)


def test_stretches_have_codes_of_their_own(tmp_path, store):
    path = write_wave(tmp_path / "a.wav")
    names = [f"{path}#t=0,0.01", f"{path}#t=0.5,0.51"]
    report = extract_codes([*names, f"{path}#t=0.5,9"], store, make_toy_codec)
    assert report.num_encoded == 2 and list(report.failures) == [f"{path}#t=0.500,9.000"]
    whole = make_toy_codec("cpu").encode(load_audio(path, RATE), RATE)
    assert [store.codes(name) for name in names] == [whole[:160], whole[8000:8160]]
    shutil.move(path, tmp_path / "b.wav")
    assert store.codes(tmp_path / "b.wav#t=0,0.01") == whole[:160]
    with pytest.raises(MissingCodesError):
        store.codes(tmp_path / "b.wav#t=0,0.02")
    with pytest.raises(AudioError, match="the file ends before byte"):
        store.codes(tmp_path / "b.wav#bytes=0,99999999")


def test_samples_may_name_parts_relative_to_their_file(tmp_path, store, write_mixture, tokenizer):
    files = [write_codes(tmp_path / f"{number}.wav", range(number, 16)) for number in range(2)]
    names = [str(replace(part, file="a.tar")) for part in write_tar(tmp_path / "a.tar", files)] + ["0.wav#t=0,0.001"]
    messages = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "yes"}]
    path = write_mixture([{"messages": messages, "audios": [name]} for name in names])
    audio = referenced_audio(load_mixture(path))
    assert sorted(audio) == sorted(tmp_path / name for name in names)
    assert resolve(names[0], tmp_path / "elsewhere") == Path(names[0])
    extract_codes(audio, store, make_toy_codec)
    _, report = build_packs(path, tokenizer, store, InterleavePlan.parse("boost"), 256)
    assert (report.num_documents, report.problems) == (3, [])

"""Every layout gives the same recordings; what cannot be read is one problem with its file and line."""

import gzip
import json
import tarfile

import numpy as np
import pytest
from layouts import LAYOUTS, RATE, TEXTS, noise, write_audio, write_csv, write_jsonl, write_webdataset

from tools.corpora.entries import Entry
from tools.corpora.formats import FORMATS, find_format, read_corpus
from tools.prepare_speech import LAYOUTS as OFFERED
from vita_audio.data.audio import load_audio
from vita_audio.data.mixture import Problem


def read(path):
    return list(read_corpus(path, find_format(path)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_found_and_read_in_place(tmp_path, name):
    write, expected = LAYOUTS[name]
    path = write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert find_format(path) == expected
    entries = read(path)
    assert [" ".join(entry.text.split()) for entry in entries] == [
        " ".join((text if expected not in ("ljspeech",) else text.replace("|", " ")).split()) for text in TEXTS
    ]
    for number, entry in enumerate(entries):
        wave = load_audio(str(entry.audio), RATE).numpy()
        if name != "common_voice" and len(wave) == 1600:  # MP3 and Vorbis only resemble the original
            np.testing.assert_allclose(wave, noise(number), atol=0.4 if entry.audio.file.endswith(".ogg") else 1e-3)
        assert entry.speaker == {"ljspeech": None, "librispeech": "19"}.get(name, "anna")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_program_offers_every_layout():
    assert list(OFFERED) == list(FORMATS)


def test_a_recording_without_text_has_none(tmp_path):
    write_audio(tmp_path / "a.wav", 0)
    write_audio(tmp_path / "bob/deep/b.MP3", 1)
    entries = read(tmp_path)
    assert [(entry.text, entry.speaker) for entry in entries] == [(None, None), (None, "bob")]


def test_parts_of_recordings_in_a_manifest(tmp_path):
    path = write_audio(tmp_path / "a.wav", 0)
    rows = [
        {"audio_filepath": "a.wav", "offset": 0.01, "duration": 0.01, "text": "x", "speaker": {"name": "anna"}},
        {"audio_filepath": str(path), "offset": "soon", "duration": 0.01},
        {"audio": {"path": "a.wav"}},
        ["a.wav"],
        {"audio": "a.wav", "offset": 0, "duration": 0.05, "text": ["x"]},
        {"audio": "a.wav", "offset": "0"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"audio": "a.w', encoding="utf-8")
    found = read(tmp_path / "m.jsonl")
    np.testing.assert_allclose(load_audio(str(found[0].audio), RATE).numpy(), noise(0)[160:320], atol=1e-4)
    assert [item.line for item in found if isinstance(item, Problem)] == [2, 3, 4, 7]
    assert [(item.audio.seconds, item.text, item.speaker) for item in found if isinstance(item, Entry)] == [
        ((0.01, 0.02), "x", None),
        ((0.0, 0.05), None, None),
        (None, None, None),
    ]
    assert "must be numbers of seconds" in found[1].reason and "must name a file" in found[2].reason


def test_a_row_that_is_no_row_is_named_and_the_others_are_read(tmp_path):
    path = write_csv(tmp_path)
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*rows[:2], b"0.ogg,a,b,c,d\n", b"\xff\xfe.ogg,a,b\n", b'0.ogg,"a"b,c\n', *rows[2:]]))
    found = read(path)
    assert [item.line for item in found if isinstance(item, Problem)] == [3, 4, 5]
    assert sum(isinstance(item, Entry) for item in found) == len(TEXTS)


def test_a_list_as_spreadsheets_write_it(tmp_path):
    rows = [
        "\ufeffAudio;Text;Speaker",
        '0 ö.wav;"two\r\nlines; and ""quotes""";anna',
        ";;",
        "",
        "1 ö.wav",
        '2 ö.wav;"a quote that never ends;anna',
        "3 ö.wav;lost;anna",
    ]
    (tmp_path / "list.csv").write_bytes("\r\n".join(rows).encode())
    first, second, problem = read(tmp_path / "list.csv")
    assert (first.text, first.speaker, first.line) == ('two lines; and "quotes"', "anna", 2)
    assert (second.text, second.speaker, second.line) == (None, None, 6)
    assert problem.line == 7 and "not a row of CSV up to line 8: unexpected end" in problem.reason


def test_a_transcript_without_audio_is_named_and_one_with_it_is_not(tmp_path):
    write_audio(tmp_path / "anna/a.b.wav", 0)
    for name in ("anna/a.b.normalized.txt", "anna/a.b.original.txt", "anna/a.b.txt", "bob/a.b.lab", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("said")
    (tmp_path / "anna/loop").symlink_to(tmp_path)
    (tmp_path / "anna/self.wav").symlink_to(tmp_path / "anna/self.wav")
    (tmp_path / "anna/utf16.wav").touch()
    (tmp_path / "anna/utf16.txt").write_text("said", encoding="utf-16")
    spoken, link, unreadable, lonely = read(tmp_path)
    assert spoken.text == "said" and link.audio.file == str(tmp_path / "anna/self.wav")
    assert unreadable.kind == "unreadable transcript" and "not UTF-8" in unreadable.reason
    assert lonely.file == str(tmp_path / "bob/a.b.lab") and "without audio of the same name" in lonely.reason


def test_one_broken_archive_does_not_end_the_others(tmp_path):
    write_webdataset(tmp_path, name="0.tar")
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:1700])
    (tmp_path / "2.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "3.tar").write_bytes(b"")
    (tmp_path / "4.tar").write_text("404: not found" * 100)
    write_webdataset(tmp_path, name="5.tar")
    found = read(tmp_path)
    problems = [item for item in found if isinstance(item, Problem)]
    assert {problem.file for problem in problems} >= {str(tmp_path / f"{number}.tar") for number in (1, 2, 3, 4)}
    assert [item.file.split("#")[0] for item in found[-3:]] == [str(tmp_path / "5.tar")] * 3


def test_members_that_are_no_sample_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        names = "a.txt b.wav b.json c.wav c.txt d.wav d.txt d.wav d.txt é/ü.wav é/ü.txt".split()
        for name in names:
            (tmp_path / "member").write_text("{" if name == "b.json" else "said")
            archive.add(tmp_path / "member", arcname=f"../{name}")
    silent, unreadable, spoken, doubled, last = read(tmp_path / "a.tar")
    assert (silent.kind, unreadable.kind, doubled.kind) == ("no audio", "unreadable transcript", "no audio")
    assert "must be audio, got ../d.wav, ../d.wav" in doubled.reason
    assert spoken.text == last.text == "said" and last.file == f"{tmp_path / 'a.tar'}#../é/ü.wav"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "no such file or folder"),
        ("a.tar.gz", "must be a plain .tar"),
        ("a.doc", "must be a folder, a recording, a .tar, .parquet or a list"),
    ],
)
def test_a_source_of_an_unknown_kind_is_one_error(tmp_path, name, message):
    for file in ("a.tar.gz", "a.doc"):
        (tmp_path / file).touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_format(tmp_path / name)


def test_several_lists_must_be_chosen_from(tmp_path):
    write_jsonl(tmp_path)
    write_csv(tmp_path)
    with pytest.raises(ValueError, match=r"several lists \(list.csv, manifest.jsonl\); give one"):
        read(tmp_path)
    assert len(read(tmp_path / "list.csv")) == len(TEXTS)


@pytest.mark.parametrize(
    ("name", "content", "layout", "labels"),
    [
        ("metadata.csv", "0.wav|One, two.|one two", "ljspeech", ("one two", None)),
        ("metadata.csv", "audio_file|text|speaker_name\nwavs/0.wav|One, two.|anna", "list", ("One, two.", "anna")),
        ("list.tsv", "0.wav\tOne, two, three.", "list", ("One, two, three.", None)),
        ("List.CSV", "Path,Sentence\n0.wav,One", "list", ("One", None)),
    ],
    ids=["file names in LJSpeech", "Coqui", "commas without a header", "capital letters"],
)
def test_lists_as_other_programs_write_them(tmp_path, name, content, layout, labels):
    write_audio(tmp_path / "wavs/0.wav", 0)
    (tmp_path / name).write_text(content)
    [entry] = read(tmp_path)
    assert find_format(tmp_path) == layout and (entry.text, entry.speaker) == labels
    np.testing.assert_allclose(load_audio(str(entry.audio), RATE).numpy(), noise(0), atol=1e-3)


def test_a_list_next_to_clips_is_not_taken_for_common_voice(tmp_path):
    write_audio(tmp_path / "clips/0.wav", 0)
    (tmp_path / "mine.tsv").write_text("file\ttext\n0.wav\tOne")
    assert [entry.text for entry in read(tmp_path)] == ["One"]


def test_a_list_with_start_and_duration_is_not_taken_for_cuts(tmp_path):
    write_audio(tmp_path / "0.wav", 0)
    row = {"audio": "0.wav", "start": 0.01, "duration": 0.05, "text": "One"}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    [entry] = read(tmp_path / "list.jsonl")
    assert entry.text == "One" and entry.audio.seconds == pytest.approx((0.01, 0.06))


def test_a_list_that_is_not_read_is_named(tmp_path):
    write_audio(tmp_path / "0.wav", 0)
    (tmp_path / "list.csv").write_text("sound,words\n0.wav,One")
    entry, problem = read(tmp_path)
    assert entry.text is None and problem.kind == "list not read"
    assert "one of its columns is audio, " in problem.reason and "got the columns sound, words" in problem.reason


def test_one_recording(tmp_path):
    write_audio(tmp_path / "talk.flac", 0).with_suffix(".txt").write_text("One")
    write_audio(tmp_path / "other.flac", 1)
    [entry] = read(tmp_path / "talk.flac")
    assert (entry.audio.file, entry.text, entry.speaker) == (str(tmp_path / "talk.flac"), "One", None)


def test_cuts_that_are_not_the_sound_of_a_file_are_named(tmp_path):
    path = write_audio(tmp_path / "0.wav", 0)
    source = {"type": "file", "channels": [0], "source": str(path)}
    recording = {"id": "r", "sources": [source], "sampling_rate": RATE, "duration": 0.1, "channel_ids": [0]}
    said = {"id": "s", "start": 0.02, "duration": 0.5, "text": "One", "speaker": "anna"}
    cut = {"id": "c", "start": 0.01, "duration": 0.05, "channel": 0, "supervisions": [said], "recording": recording}
    rows = [
        cut,
        cut | {"start": 0, "duration": 0.1, "supervisions": []},
        cut | {"recording": recording | {"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}},
        cut | {"recording": recording | {"channel_ids": [0, 1]}},
        {"id": "m", "tracks": [], "type": "MixedCut"},
        cut | {"supervisions": [said | {"start": 0.06}]},
        [1],
    ]
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"id": "c')
    found = read(tmp_path)
    part, whole = (item for item in found if isinstance(item, Entry))
    assert (part.audio.seconds, part.text, part.speaker, part.recording) == ((0.03, 0.06), "One", "anna", "r")
    assert (whole.audio.seconds, whole.text) == (None, None)
    problems = [item for item in found if isinstance(item, Problem)]
    assert [problem.line for problem in problems] == [3, 4, 5, 6, 7, 8]
    assert [problem.kind for problem in problems] == ["no audio"] * 3 + ["malformed row"] * 3


@pytest.mark.parametrize("layout", ["cuts", "shar"])
def test_lhotse(tmp_path, layout):
    lhotse = pytest.importorskip("lhotse")
    cuts = []
    for number, text in enumerate(TEXTS):
        recording = lhotse.Recording.from_file(write_audio(tmp_path / f"audio/{number}.wav", number))
        supervision = lhotse.SupervisionSegment(f"s{number}", recording.id, 0, 0.1, text=text, speaker="anna")
        cuts.append(lhotse.MonoCut(f"c{number}", 0, 0.1, 0, [supervision], recording=recording))
    cuts = lhotse.CutSet.from_cuts(cuts)
    target = tmp_path / "out"
    target.mkdir()
    if layout == "cuts":
        cuts.to_file(target / "cuts.jsonl.gz")
    else:
        cuts.to_shar(target, fields={"recording": "wav"}, shard_size=2)
    assert find_format(target) == "lhotse"
    entries = read(target)
    assert [(entry.text, entry.speaker) for entry in entries] == [(text, "anna") for text in TEXTS]
    for number, entry in enumerate(entries):
        np.testing.assert_allclose(load_audio(str(entry.audio), RATE).numpy(), noise(number), atol=1e-3)

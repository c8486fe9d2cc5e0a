"""Metrics of codecs, and the comparison of several on a folder of sounds."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from toy_corpus import LengthJudge

from evaluation.codec_metrics import code_metrics, judged_metrics, mel_distance, opinion_metrics
from evaluation.evaluate_codec import main, parse_arguments, read_corpus
from evaluation.judges import JUDGES
from evaluation.reporting.plots import draw_codecs
from vita_audio.audio_tokenizers.front_end import HEAD_SECONDS, TAIL_SECONDS
from vita_audio.audio_tokenizers.glm4voice import EMBEDDED_TOKENIZER

RATE = 16_000


def tone(seconds, frequency):
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tones in a tree of folders, with their texts."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "more").mkdir()
    soundfile.write(folder / "b.wav", tone(0.6, 300), RATE)
    soundfile.write(folder / "more" / "a.flac", tone(0.5, 200), RATE)
    soundfile.write(folder / "a.wav", tone(0.4, 440), RATE)
    for name, text in (("a", "one two\n"), ("b", "three"), ("more/a", "four")):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def untold(folder, tmp_path):
    """The same without texts."""
    return shutil.copytree(folder, tmp_path / "untold", ignore=shutil.ignore_patterns("*.txt"))


class Codec:
    """The attributes of an audio tokenizer that the metrics need."""

    frame_rate, vocab_size, codes_per_group, bits_per_code = 10.0, 16, 2, 3.0


def test_folders_are_read_in_order_with_their_texts(folder, tmp_path):
    clips = read_corpus(folder)
    assert [(clip.name, clip.text) for clip in clips] == [("a", "one two"), ("b", "three"), ("more-a", "four")]
    assert len(read_corpus(folder, 2)) == 2
    with pytest.raises(FileNotFoundError, match=f"no .wav, .* files in {tmp_path}"):
        read_corpus(tmp_path)
    listed = tmp_path / "heldout.jsonl"
    listed.write_text('{"audio": "c.wav", "reference": "three"}\n', encoding="utf-8")
    assert [(clip.path, clip.text) for clip in read_corpus(listed)] == [(tmp_path / "c.wav", "three")]
    (tmp_path / "manifest.jsonl").write_text('{"audio": "x/c.wav", "text": "three"}\n', encoding="utf-8")
    (clip,) = read_corpus(tmp_path)
    assert (clip.path, clip.name, clip.text) == (tmp_path / "x/c.wav", "x-c", "three")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"audio": "a.wav", "text": "one"}', '{"audio": "b.wav"}'], "1 of 2 have none, such as b; add their texts"),
        (['{"audio": "x/a.wav"}', '{"audio": "x/a.flac"}'], "got more than one of x-a"),
        (["", '{"text": "one"}'], r'manifest.jsonl:2: must have "audio"'),
        (['{"audio": "a.wav", "text": 1}'], r'manifest.jsonl:1: must have "audio", .* "text"'),
        (['{"audio": '], "manifest.jsonl:1: must be one JSON object"),
    ],
)
def test_a_wrong_manifest_is_refused_by_its_line(lines, message, tmp_path):
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path)


def test_bits_are_those_of_the_codebooks_and_of_the_frequencies():
    figures = code_metrics([[0, 8, 1, 9], [0, 8, 1, 9]], Codec())
    assert figures["codes_per_second"] == 10 and figures["bits_per_second"] == 30
    assert figures["codes_used"] == 4 and figures["codebook_perplexity"] == pytest.approx(4)
    assert figures["bits_per_second_used"] == pytest.approx(10)  # each slot has two codes, equally frequent
    assert code_metrics([[0, 8], [0, 8]], Codec())["bits_per_second_used"] == pytest.approx(0)


def test_mel_distance_is_zero_for_the_same_sound_at_any_rate_and_length():
    wave = torch.from_numpy(tone(1, 300))
    assert mel_distance((wave, RATE), (wave, RATE)) == 0
    assert mel_distance((wave, RATE), (wave[:8000], RATE)) < 0.3  # the shorter one ends abruptly
    assert mel_distance((wave, RATE), (torch.zeros(RATE), RATE)) > 0.5
    assert math.isfinite(mel_distance((wave, RATE), (torch.zeros(0), RATE)))


def heard_in(clips, judge):
    sounds = [(torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0]), RATE) for clip in clips]
    return sounds, judge.transcribe(sounds)


def test_words_are_compared_with_the_texts(folder):
    clips, judge = read_corpus(folder), LengthJudge()
    sounds, heard = heard_in(clips, judge)
    figures = judged_metrics(clips, judge, sounds, heard)
    assert [row["reference_text"] for row in figures["generated"]] == ["one two", "three", "four"]
    assert figures["wer"] == figures["wer_original"] > 0
    assert figures["wer_rise"] == 0 and figures["wer_rise_interval"] == (0, 0)
    low, high = figures["wer_interval"]
    assert low <= figures["wer"] <= high and low < high


def test_the_rise_of_the_word_error_rate_is_that_from_the_originals_to_the_decoded_clips(folder):
    clips = read_corpus(folder)
    right, wrong = [clip.text for clip in clips], [clip.text.replace("three", "tree") for clip in clips]
    judge = LengthJudge()
    judge._transcribe_all = lambda waves: iter(wrong)
    figures = judged_metrics(clips, judge, heard_in(clips, LengthJudge())[0], right)
    assert (figures["wer"], figures["wer_original"], figures["wer_rise"]) == (1 / 4, 0, 1 / 4)
    low, high = figures["wer_rise_interval"]
    assert low <= 1 / 4 <= high and low < high


def test_digits_are_counted_where_each_text_has_some(folder):
    clips = read_corpus(folder)  # one two, three, four
    right, wrong = [clip.text for clip in clips], [clip.text.replace("three", "five") for clip in clips]
    judge = LengthJudge()
    judge._transcribe_all = lambda waves: iter(wrong)
    sounds = heard_in(clips, LengthJudge())[0]
    figures = judged_metrics(clips, judge, sounds, right)
    assert [figures[name] for name in ("digit_error", "digit_error_original", "digit_error_rise")] == [1 / 4, 0, 1 / 4]
    for low, high in (figures["digit_error_interval"], figures["digit_error_rise_interval"]):
        assert low <= 1 / 4 <= high and low < high
    judge._transcribe_all = lambda waves: iter(wrong)
    clips[0] = replace(clips[0], text="nobody")
    assert not any(name.startswith("digit") for name in judged_metrics(clips, judge, sounds, right))


def test_renderings_of_one_text_are_one_sample_of_an_interval(folder):
    clips = read_corpus(folder)
    sounds, heard = heard_in(clips, LengthJudge())
    once = judged_metrics(clips, LengthJudge(), sounds, heard)
    often = judged_metrics(clips * 4, LengthJudge(), sounds * 4, heard * 4)
    keys = ("wer", "wer_interval", "wer_original", "wer_rise", "wer_rise_interval")
    assert [often[key] for key in keys] == [pytest.approx(once[key]) for key in keys]
    before, after = [3.0, 4.0, 5.0], [2.0, 2.5, 4.0]
    assert opinion_metrics(clips * 4, before * 4, after * 4) == opinion_metrics(clips, before, after)


def test_opinions_are_those_of_the_originals_and_of_the_decoded_clips(folder, tmp_path, monkeypatch):
    levels = []

    class Opinion:
        def measure(self, sound):
            levels.append(len(sound[0]) / sound[1])
            return 1 + levels[-1]

    monkeypatch.setattr("evaluation.judges.PredictedMos", Opinion)
    flags = f"--corpus x={folder} --output {tmp_path} --judge none --mos"
    main(flags.split())
    figures = json.loads((tmp_path / "codec.json").read_text(encoding="utf-8"))["x"]
    before, after = levels[: len(levels) // 2], levels[len(levels) // 2 :]
    assert (figures["mos_original"], figures["mos"]) == (
        pytest.approx(1 + np.mean(before)),
        pytest.approx(1 + np.mean(after)),
    )
    low, high = figures["mos_original_interval"]
    assert 1.39 < low < figures["mos_original"] < high < 1.61  # the clips are 0.4 to 0.6 s long


def test_without_texts_words_are_compared_with_those_heard_in_the_originals(untold):
    clips, judge = read_corpus(untold), LengthJudge()
    sounds, heard = heard_in(clips, judge)
    figures = judged_metrics(clips, judge, sounds, heard)
    assert [row["reference_text"] for row in figures["generated"]] == heard
    assert figures["wer"] == 0 and "wer_original" not in figures


def test_several_corpora_are_evaluated_one_by_one(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    corpora = ["--corpus", f"all={folder}", "--corpus", f"more={folder / 'more'}"]
    main([*corpora, "--output", str(tmp_path), "--judge", "length", "--max-clips", "2"])
    figures = json.loads((tmp_path / "codec.json").read_text(encoding="utf-8"))
    assert list(figures) == ["judge", "all", "more", "mean_codebook_perplexity"]
    assert (figures["all"]["clips"], figures["more"]["clips"]) == (2, 1)
    assert sorted(path.name for path in tmp_path.rglob("*.wav")) == ["a.wav", "b.wav", "more-a.wav"]
    assert (tmp_path / "mel.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("corpora", "message"),
    [(["x"], "must be NAME=DIR"), (["x=a", "x=b"], "a name of its own"), (["judge=a"], "a name of its own")],
)
def test_wrong_names_of_corpora_are_refused(corpora, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), *(part for corpus in corpora for part in ("--corpus", corpus))])
    assert message in capsys.readouterr().err


def test_a_corpus_that_is_not_there_is_named_before_another_is_evaluated(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="files in nowhere"):
        main(["--corpus", f"all={folder}", "--corpus", "other=nowhere", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_comparison_of_codecs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    threads, output = [], tmp_path / "codecs"
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    main(
        f"--corpus x={folder} --output {output} --compare glm4voice glm4voice=embedded,embedded --judge length "
        "--max-clips 2".split()
    )
    summary = json.loads((output / "codecs.json").read_text(encoding="utf-8"))
    assert summary["judge"] == "length" and summary["clips"] == 2
    assert threads[0] == 1  # CPU seconds are compared
    first, second = summary["codecs"]["glm4voice"], summary["codecs"]["glm4voice-2"]
    for key in ("codes_per_second", "codes_used", "mel_distance", "wer", "generated"):
        assert first[key] == second[key]
    assert first["mel_distance"] > 0 and first["bits_per_second"] == 12.5 * math.log2(first["codebook_size"])
    for name in ("glm4voice", "glm4voice-2"):
        assert sorted(path.name for path in (output / name).iterdir()) == ["b.wav", "more-a.wav"]
    seconds = 0.6 + HEAD_SECONDS + TAIL_SECONDS
    assert soundfile.info(output / "glm4voice" / "b.wav").duration == pytest.approx(seconds, abs=0.1)
    rows = [line for line in (output / "codecs.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(rows) == 4 and "mel distance" in rows[0] and rows[2].startswith("| glm4voice | 12.5 | ")
    assert all((output / name).stat().st_size > 5000 for name in ("codecs.png", "spectrograms.png"))
    assert "glm4voice-2 {" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--compare mp3", "unknown audio tokenizer 'mp3'; known are glm4voice"),
        ("--compare glm4voice=nowhere", "no folder nowhere"),
        ("--compare glm4voice --judge parrot", "judge must be one of"),
        (f"--audio-tokenizer-path {EMBEDDED_TOKENIZER}", "glm4voice needs a decoder: --audio-decoder-path"),
        (f"--compare glm4voice={EMBEDDED_TOKENIZER}", "glm4voice needs a decoder: .*TYPE=PATH,DECODER"),
        ("--codes store --codes-of gone.yaml", "gone.yaml"),
    ],
)
def test_wrong_requests_are_named(folder, tmp_path, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        main([*f"--corpus x={folder} --output {tmp_path}".split(), *arguments.split()])
    assert not list(tmp_path.iterdir())  # nothing is measured before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--max-clips 0", "--max-clips: must be at least 1, got 0"),
        ("--corpus y=b --compare glm4voice", "--compare needs a single --corpus, got 2"),
        ("--codes store", "--codes and --codes-of belong together"),
        ("--compare snac24khz --audio-tokenizer-path x", "leaves out --audio-tokenizer-path, which is for one codec"),
        ("--compare snac24khz --codes x --codes-of y", "leaves out --codes, which is for one codec"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--corpus", "x=a", "--output", "out", *arguments.split()])
    assert message in capsys.readouterr().err


def test_codecs_are_compared_without_texts(untold, tmp_path, monkeypatch):
    monkeypatch.setitem(JUDGES, "length", lambda num_threads: LengthJudge())
    output = tmp_path / "codecs"
    main(f"--corpus x={untold} --output {output} --compare glm4voice --judge length --max-clips 2".split())
    assert "WER of originals" not in (output / "codecs.md").read_text(encoding="utf-8")
    assert (output / "codecs.png").stat().st_size > 5000


@pytest.mark.parametrize(("originals", "lines"), [({"wer_original": 0.0}, 2), ({"wer_original": 0.2}, 2), ({}, 1)])
def test_the_errors_of_originals_are_drawn_where_they_are_known(originals, lines, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_codecs({"codec": {"bits_per_second": 100.0, "wer": 0.1, **originals}}, tmp_path / "codecs.png")
    (axis,) = drawn[0].axes
    assert len(axis.lines) == lines and (axis.get_legend() is None) == (not originals)
    assert axis.get_ylim()[1] > 100 * originals.get("wer_original", 0.1)


def test_without_a_judge_there_are_no_errors_to_draw(folder, tmp_path):
    main(f"--corpus x={folder} --output {tmp_path} --compare glm4voice --judge none --max-clips 1".split())
    figures = json.loads((tmp_path / "codecs.json").read_text(encoding="utf-8"))["codecs"]["glm4voice"]
    assert "wer" not in figures and figures["clips"] == 1
    assert "WER" not in (tmp_path / "codecs.md").read_text(encoding="utf-8")
    assert not (tmp_path / "codecs.png").exists() and (tmp_path / "spectrograms.png").exists()

"""load_audio on good and bad files: it works, or one error names the file."""

import math
import struct

import numpy as np
import pytest
import soundfile
import torch

from vita_audio.data.audio import AudioError, load_audio, stated_seconds

RATE = 16_000


def tone(seconds, rate, frequency=440.0):
    return (0.5 * np.sin(2 * math.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_any_rate_and_depth_gives_the_same_wave(tmp_path, rate, subtype):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate), rate, subtype=subtype)
    wave = load_audio(tmp_path / "a.wav", RATE)
    assert wave.dtype == torch.float32 and wave.shape == (RATE,)
    inner = slice(400, -400)  # resampling rings at the ends
    expected = torch.from_numpy(tone(1.0, RATE))[inner]
    torch.testing.assert_close(wave[inner], expected, atol=1.5e-2 if subtype == "PCM_U8" else 2e-3, rtol=0)


def test_channel_rule(tmp_path):
    left, right = tone(0.2, RATE), tone(0.2, RATE, 1000.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    torch.testing.assert_close(load_audio(tmp_path / "a.wav", RATE), torch.from_numpy(left))
    mean = load_audio(tmp_path / "a.wav", RATE, channel="mean")
    torch.testing.assert_close(mean, torch.from_numpy((left + right) / 2))
    with pytest.raises(ValueError, match='channel must be "first" or "mean"'):
        load_audio(tmp_path / "a.wav", RATE, channel="left")


@pytest.mark.parametrize("seconds", [0.05, 600.0])
def test_short_and_long_audio(tmp_path, seconds):
    soundfile.write(tmp_path / "a.flac", tone(seconds, 8_000), 8_000)
    assert load_audio(tmp_path / "a.flac", RATE).shape == (round(seconds * RATE),)


def test_one_sample_survives_downsampling(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.25]), 48_000, subtype="FLOAT")
    wave = load_audio(tmp_path / "a.wav", RATE)
    assert wave.shape == (1,) and wave[0] > 0


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_other_containers(tmp_path, name):
    soundfile.write(tmp_path / name, tone(1.0, RATE), RATE)
    assert abs(len(load_audio(tmp_path / name, RATE)) - RATE) <= 1200


def test_wav_written_to_a_pipe_has_no_length(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, RATE), RATE)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert load_audio(path, RATE).shape == (RATE,)


def test_flac_written_to_a_pipe_is_an_error(tmp_path):
    """Its header has 0 samples: the last 36 of the bits of bytes 18 to 25."""
    soundfile.write(tmp_path / "a.flac", tone(1.0, RATE), RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    for read in (lambda path: load_audio(path, RATE), stated_seconds):
        with pytest.raises(AudioError, match="a.flac: its header does not state the length"):
            read(tmp_path / "a.flac")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_headers_say_how_long_a_file_is(tmp_path, name):
    soundfile.write(tmp_path / name, tone(2.0, RATE), RATE)
    assert stated_seconds(tmp_path / name) == pytest.approx(2, abs=0.1)
    with pytest.raises(FileNotFoundError, match="gone.wav: no such audio file"):
        stated_seconds(tmp_path / "gone.wav")


def write_truncated(path, share):
    soundfile.write(path, tone(2.0, RATE), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_truncated_file_is_an_error(tmp_path, name, share):
    write_truncated(tmp_path / name, share)
    with pytest.raises(AudioError, match=rf"{name}: (truncated|not readable|file has no samples)"):
        load_audio(tmp_path / name, RATE)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_samples_are_an_error(tmp_path, value):
    wave = tone(0.1, RATE)
    wave[7] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="a.wav: 1 of 1600 samples are NaN or infinite"):
        load_audio(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "file is empty"), (b"no audio at all", "not readable as audio"), (None, "no samples")]
)
def test_file_without_audio_is_an_error(tmp_path, content, reason):
    path = tmp_path / "a.wav"
    if content is None:
        soundfile.write(path, np.zeros(0), RATE)
    else:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"a\.wav: .*{reason}"):
        load_audio(path, RATE)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.wav: no such audio file"):
        load_audio(tmp_path / "gone.wav", RATE)


ODD_FORMATS = [
    *(("wav", codec) for codec in ("GSM610", "MS_ADPCM", "IMA_ADPCM", "ULAW", "G721_32", "NMS_ADPCM_16")),
    *(("aiff", "GSM610"), ("w64", "GSM610"), ("w64", "PCM_16"), ("au", "ALAW"), ("au", "G723_24"), ("caf", "ALAC_16")),
]


@pytest.mark.parametrize(("suffix", "codec"), ODD_FORMATS)
def test_every_codec_is_read_also_those_that_cannot_seek(tmp_path, suffix, codec):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0, RATE), RATE, subtype=codec, format=suffix.upper())
    wave = load_audio(path, RATE)
    assert 0 <= len(wave) - RATE < 512  # some codecs fill their last block
    likeness = torch.cosine_similarity(wave[:RATE], torch.from_numpy(tone(1.0, RATE)), dim=0)
    assert likeness > 0.97 and stated_seconds(path) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(("suffix", "codec"), ODD_FORMATS)
@pytest.mark.parametrize("num_bytes", [3, 20, 45, 70, 1000])
def test_the_beginning_of_a_file_of_any_format_is_an_error_that_names_it(tmp_path, suffix, codec, num_bytes):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0, RATE), RATE, subtype=codec, format=suffix.upper())
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(AudioError, match=rf"^{path}: "):
        load_audio(path, RATE)


def link_to_what_cannot_be_read(path):
    path.symlink_to("/proc/self/mem")  # may be opened, and fails when it is read, also for root


BAD_FILES = {
    "a.raw": lambda path: soundfile.write(path, tone(0.1, RATE), RATE, subtype="PCM_16"),
    "text.wav": lambda path: path.write_text("Not audio.", encoding="utf-8"),
    "text.mp3": lambda path: path.write_text("Not audio.", encoding="utf-8"),
    "text.raw": lambda path: path.write_text("Not audio.", encoding="utf-8"),
    "zeros.wav": lambda path: path.write_bytes(bytes(5000)),
    "riff.wav": lambda path: path.write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt " + bytes(200)),
    "folder.wav": lambda path: path.mkdir(),
    "unreadable.wav": link_to_what_cannot_be_read,
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_whatever_the_sound_library_refuses_is_an_error_that_names_the_file(tmp_path, name):
    BAD_FILES[name](tmp_path / name)
    for read in (lambda path: load_audio(path, RATE), stated_seconds):
        with pytest.raises(AudioError, match=rf"{name}: ") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "a\0.wav"])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no such audio file"):
        load_audio(tmp_path / name, RATE)

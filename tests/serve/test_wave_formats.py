"""Audio on the wire."""

import io

import numpy as np
import pytest
import soundfile
import soxr
import torch

from vita_audio.serve.audio import StreamResampler, from_pcm16, read_audio, to_pcm16, to_wav, wav_header

WAVE = 0.5 * torch.sin(torch.arange(22_050) * 0.1)


@pytest.mark.parametrize("size", [7, 441, 30_000])
def test_a_stream_is_resampled_as_a_whole(size):
    resampler = StreamResampler(22_050, 24_000)
    pieces = [resampler.push(piece) for piece in WAVE.split(size)] + [resampler.flush()]
    expected = soxr.resample(WAVE.numpy(), 22_050, 24_000)
    np.testing.assert_allclose(torch.cat(pieces).numpy(), expected, atol=1e-5)


def test_pcm_keeps_a_wave_and_half_a_sample_is_refused():
    assert torch.equal(
        from_pcm16(to_pcm16(torch.tensor([0.0, 0.5, -2, 2]))), torch.tensor([0, 16384, -32767, 32767]) / 32768
    )
    with pytest.raises(ValueError, match="odd number of bytes, 3"):
        from_pcm16(b"abc")


def test_wav_files_say_that_they_are_generated():
    for data in (to_wav(WAVE), wav_header() + to_pcm16(WAVE)):  # whole, and streamed
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            assert (file.comment, file.samplerate, file.frames) == ("AI-generated", 24_000, len(WAVE))
    with soundfile.SoundFile(io.BytesIO(to_wav(WAVE))) as file:
        assert "should be" not in file.extra_info  # the sizes in its header are right


def test_uploads_are_read_by_their_content():
    for name in ("WAV", "FLAC", "MP3", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, np.stack([WAVE, WAVE], axis=1), 22_050, format=name)
        wave, rate = read_audio(file.getvalue(), 10)
        assert rate == 22_050 and wave.shape[0] == 2 and abs(wave.shape[1] - len(WAVE)) < 3000


@pytest.mark.parametrize("data", [b"", b"RIFF", b"/etc/passwd", bytes(1000)])
def test_what_is_not_audio_is_refused(data):
    with pytest.raises(ValueError, match="audio is not readable"):
        read_audio(data, 10)


@pytest.mark.parametrize("channels, rate", [(3, 16_000), (1, 400_000)])
def test_a_small_file_of_many_samples_is_refused(channels, rate):
    file = io.BytesIO()
    soundfile.write(file, np.zeros((rate, channels)), rate, format="FLAC")
    with pytest.raises(ValueError, match=f"at most 2 channels at 192000 Hz, got {channels} channels at {rate} Hz"):
        read_audio(file.getvalue(), 10)


@pytest.mark.parametrize("num_samples", [0, 1, 2000])
def test_a_file_that_is_too_short_is_refused(num_samples):
    with pytest.raises(ValueError, match=f"at least 0.1 s long, got {num_samples / 24_000:.3f} s"):
        read_audio(to_wav(torch.zeros(num_samples)), 10)


@pytest.mark.parametrize("loudest", [32_767.0, 1e30, np.inf])
def test_samples_beyond_all_scales_are_refused(loudest):
    file = io.BytesIO()
    soundfile.write(file, np.full(22_050, loudest), 22_050, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match=r"full scale \[-1, 1\], got one of"):
        read_audio(file.getvalue(), 10)

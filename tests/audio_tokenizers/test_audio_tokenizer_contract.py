"""The interface that every registered audio tokenizer must provide."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_folders import CODES_LOST, MAKE_FOLDERS, OPTIONS, PACKAGES

from evaluation.evaluate_codec import evaluate_corpus, read_corpus
from vita_audio.audio_tokenizers import AUDIO_TOKENIZERS, AudioTokenizer, Voice, get_audio_tokenizer


@pytest.fixture(params=sorted(AUDIO_TOKENIZERS))
def tokenizer(request, folders) -> AudioTokenizer:
    return get_audio_tokenizer(request.param, *folders[request.param], **OPTIONS.get(request.param, {}))


def noise(seconds, rate):
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(int(seconds * rate), generator=generator)


def num_codes(tokenizer, seconds):
    """Return the number of codes of a wave of this duration, in whole groups."""
    return math.ceil(seconds * tokenizer.frame_rate / tokenizer.codes_per_group) * tokenizer.codes_per_group


def test_every_type_is_tested():
    assert MAKE_FOLDERS.keys() == AUDIO_TOKENIZERS.keys()


def test_every_type_that_needs_a_package_has_an_extra():
    text = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    assert PACKAGES.keys() == MAKE_FOLDERS.keys() - {"glm4voice"}
    assert [name for name in PACKAGES if f'"{name}": [' not in text] == []


def test_unknown_type_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown audio tokenizer 'glm5voice'; known are glm4voice, "):
        get_audio_tokenizer("glm5voice")


@pytest.mark.parametrize("name", ["snac24khz", "sparktts"])
def test_a_codec_of_one_folder_is_given_one(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} has one folder for codes and waves, got .* and elsewhere"):
        get_audio_tokenizer(name, tmp_path, "elsewhere")


def test_properties(tokenizer):
    assert tokenizer.name in AUDIO_TOKENIZERS
    assert tokenizer.sample_rate > 0 and tokenizer.output_rate > 0
    assert tokenizer.frame_rate > 0 and tokenizer.vocab_size > 1
    assert tokenizer.fingerprint.startswith(tokenizer.name) and tokenizer.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("seconds", [0.05, 0.73, 2.0])
def test_codes_are_integers_in_range_at_the_frame_rate(tokenizer, seconds):
    codes = tokenizer.encode(noise(seconds, tokenizer.sample_rate), tokenizer.sample_rate)
    assert all(type(code) is int and 0 <= code < tokenizer.vocab_size for code in codes)
    assert 0 <= num_codes(tokenizer, seconds) - len(codes) <= CODES_LOST.get(tokenizer.name, 0)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_any_rate_gives_the_same_number_of_codes(tokenizer, rate):
    expected = num_codes(tokenizer, 1)
    assert expected - CODES_LOST.get(tokenizer.name, 0) <= len(tokenizer.encode(noise(1, rate), rate)) <= expected


def test_array_tensor_and_first_channel_agree(tokenizer):
    rate = tokenizer.sample_rate
    wave = noise(1, rate)
    expected = tokenizer.encode(wave, rate)
    assert tokenizer.encode(wave.numpy(), rate) == expected
    assert tokenizer.encode(wave.numpy().astype(np.float64), rate) == expected
    assert tokenizer.encode(torch.stack([wave, -wave.flip(0)]), rate) == expected


def test_batch_equals_single(tokenizer):
    rate = tokenizer.sample_rate
    waves = [noise(seconds, rate) for seconds in (0.4, 1.3, 0.05)]
    assert tokenizer.encode_batch(waves, rate) == [tokenizer.encode(wave, rate) for wave in waves]
    assert tokenizer.encode_batch([], rate) == []


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(0), "must have samples"),
        (torch.zeros(2, 0), "must have samples"),
        (torch.tensor([0.0, math.nan, math.inf]), "2 of 3 samples that are NaN or infinite"),
        (torch.zeros(800, dtype=torch.int16), "divide int16 by 32768"),
        (torch.zeros(800, 2), "transpose it"),
        (torch.zeros(1, 1, 800), r"got shape \(1, 1, 800\)"),
    ],
)
def test_bad_waves_are_refused(tokenizer, wave, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(wave, tokenizer.sample_rate)


def test_bad_rate_is_refused(tokenizer):
    with pytest.raises(ValueError, match="sample_rate must be positive, got 0"):
        tokenizer.encode(torch.zeros(800), 0)


def test_decoded_wave(tokenizer):
    codes = [code % tokenizer.vocab_size for code in range(28)]
    wave = tokenizer.decode(codes)
    assert wave.dim() == 1 and wave.dtype == torch.float32 and wave.device.type == "cpu"
    assert wave.isfinite().all() and wave.abs().max() <= 1
    assert len(wave) == pytest.approx(len(codes) / tokenizer.frame_rate * tokenizer.output_rate, rel=0.01)
    assert torch.equal(tokenizer.decode(torch.tensor(codes)), wave)
    assert tokenizer.decode([]).shape == (0,)


def test_bad_codes_are_refused(tokenizer):
    for code in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=rf"audio codes must be in 0..{tokenizer.vocab_size - 1}, got 1 others"):
            tokenizer.decode([0, code])
        with pytest.raises(ValueError, match="audio codes must be in"):
            tokenizer.stream().push([0, code])
    with pytest.raises(TypeError):
        tokenizer.decode([0.5])


def test_stream_is_as_long_as_the_whole(tokenizer):
    codes = [code * 5 % tokenizer.vocab_size for code in range(62)]
    stream = tokenizer.stream()
    parts = [stream.push(codes[start : start + 3]) for start in range(0, len(codes), 3)]
    wave = torch.cat([*parts, stream.flush()])
    assert wave.dtype == torch.float32 and wave.abs().max() <= 1
    assert len(wave) == len(tokenizer.decode(codes))
    assert len(torch.cat(parts)) > 0


def test_voices_are_made_or_refused(tokenizer):
    codes, sample = list(range(28)), noise(1.5, tokenizer.sample_rate)
    if tokenizer.voice_class is None:
        with pytest.raises(ValueError, match=f"{tokenizer.name} has no voices"):
            tokenizer.make_voice(sample, tokenizer.sample_rate)
        for call in (lambda: tokenizer.decode(codes, Voice()), lambda: tokenizer.stream(Voice())):
            with pytest.raises(ValueError, match=f"{tokenizer.name} has no voices"):
                call()
        return
    for call in (lambda: tokenizer.decode(codes, Voice()), lambda: tokenizer.stream(Voice())):
        with pytest.raises(ValueError, match=f"{tokenizer.name} needs a voice from its own make_voice, got a Voice"):
            call()
    voice = tokenizer.make_voice(sample, tokenizer.sample_rate)
    assert isinstance(voice, Voice)
    wave, stream = tokenizer.decode(codes, voice), tokenizer.stream(voice)
    assert wave.isfinite().all() and not torch.allclose(wave[:5000], tokenizer.decode(codes)[:5000])
    assert len(torch.cat([stream.push(codes), stream.flush()])) == len(wave)


def test_every_type_can_be_compared(tokenizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.7, 16_000).numpy(), 16_000)
    metrics = evaluate_corpus(read_corpus(tmp_path), tokenizer, tmp_path / "decoded")
    assert 0 < metrics["codes_used"] <= metrics["codebook_size"] and metrics["mel_distance"] > 0
    assert metrics["bits_per_second_used"] <= metrics["bits_per_second"]
    made = soundfile.info(tmp_path / "decoded" / "a.wav")
    assert made.samplerate == tokenizer.output_rate and made.duration == pytest.approx(0.7, abs=0.1)


def test_stream_without_codes_is_silent(tokenizer):
    stream = tokenizer.stream()
    assert stream.push([]).shape == (0,) and stream.flush().shape == (0,)


def test_flushed_stream_takes_no_more_codes(tokenizer):
    stream = tokenizer.stream()
    stream.push([0])
    stream.flush()
    with pytest.raises(ValueError, match="flushed"):
        stream.push([0])


def test_streams_do_not_disturb_each_other(tokenizer):
    first_codes = [code % tokenizer.vocab_size for code in range(30)]
    second_codes = first_codes[::-1]
    alone = tokenizer.stream()
    expected = torch.cat([alone.push(first_codes), alone.flush()])
    first, second = tokenizer.stream(), tokenizer.stream()
    parts = []
    for start in range(0, 30, 5):
        parts.append(first.push(first_codes[start : start + 5]))
        second.push(second_codes[start : start + 5])
    second.flush()
    assert torch.equal(torch.cat([*parts, first.flush()]), expected)

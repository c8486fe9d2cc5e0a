"""BiCodec: the real classes at a small size against the package's own path, voices, and pieces that equal the whole."""

import copy
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_folders import LAYOUTS, OPTIONS

from evaluation.evaluate_codec import evaluate_corpus, read_corpus
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.audio_tokenizers import sparktts as module
from vita_audio.audio_tokenizers.sparktts import SparkTTSVoice

LAYOUT = LAYOUTS["sensevoice_sparktts"]


@pytest.fixture(scope="module")
def tokenizer(folders):
    return get_audio_tokenizer("sparktts", folders["sparktts"][0], **OPTIONS["sparktts"])


def speech(seconds, seed=1):
    """Noise whose volume rises and falls, (samples,) at 16 kHz."""
    number = round(16_000 * seconds)
    noise = torch.randn(number, generator=torch.Generator().manual_seed(seed))
    return 0.3 * noise * torch.linspace(0, 12, number).sin().abs()


def test_sizes_are_those_of_the_released_layout(tokenizer):
    assert tokenizer.vocab_size == LAYOUT["vocab"] and tokenizer.frame_rate == LAYOUT["rate_hz"]
    assert tokenizer.sample_rate == tokenizer.output_rate == LAYOUT["sample_rate"]
    assert len(tokenizer.decode(range(7))) == 7 * LAYOUT["samples_per_token"]


def test_codes_and_voice_are_those_of_the_package(tokenizer):
    """The steps of `BiCodecTokenizer.tokenize` of the package, on its own classes."""
    from spark_tts_lib.models.audio_tokenizer import BiCodecTokenizer
    from spark_tts_lib.utils.audio import audio_volume_normalize

    package = BiCodecTokenizer.__new__(BiCodecTokenizer)  # its loader needs torchaudio
    package.config = tokenizer.config
    package.model, package.processor = tokenizer.bicodec, tokenizer.feature_extractor
    package.feature_extractor = tokenizer.speech_model
    tokenizer.speech_model.config.output_hidden_states = True
    for seconds in (2.0, 7.3):
        wave = audio_volume_normalize(speech(seconds).numpy()).astype(np.float32)
        reference = torch.from_numpy(package.get_ref_clip(wave))[None]
        with torch.no_grad():
            batch = {"wav": wave, "ref_wav": reference, "feat": package.extract_wav2vec2_features(wave)}
            semantic, voice = package.model.tokenize(batch)
        assert tokenizer.encode(speech(seconds), 16_000) == semantic[0].tolist()
        assert list(tokenizer.make_voice(speech(seconds), 16_000).codes) == voice.flatten().tolist()
        expected = package.detokenize(voice[:, 0], semantic)
        made = tokenizer.decode(semantic[0].tolist(), SparkTTSVoice(voice.flatten().tolist()))
        torch.testing.assert_close(made, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_a_voice_must_be_given_and_changes_the_wave(folders, tokenizer):
    without = get_audio_tokenizer("sparktts", folders["sparktts"][0])
    for call in (lambda: without.decode([1]), without.stream):
        with pytest.raises(ValueError, match="codes do not determine the speaker; give a voice, made with make_voice"):
            call()
    tone = (torch.arange(32_000) * 0.1).sin()
    voices = [without.make_voice(wave, 16_000) for wave in (speech(6), tone)]
    assert all(len(voice.codes) == 32 for voice in voices)
    assert voices[0] != voices[1]
    waves = [without.decode(range(40), voice) for voice in (*voices, SparkTTSVoice([0] * 32))]
    assert not torch.allclose(waves[0], waves[1]) and not torch.allclose(waves[0], waves[2])
    assert torch.equal(tokenizer.decode(range(40)), without.decode(range(40), OPTIONS["sparktts"]["voice"]))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([0] * 31, "a voice must have 32 codes, got 31; make one with make_voice"),
        ([4096] + [0] * 31, r"audio codes must be in 0..4095, got 1 others such as \[4096\]"),
    ],
)
def test_a_voice_of_another_form_is_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        SparkTTSVoice(codes)


def test_a_comparison_gives_every_clip_its_own_voice(folders, tokenizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(1).numpy(), 16_000, subtype="FLOAT")
    without = get_audio_tokenizer("sparktts", folders["sparktts"][0])
    assert without.needs_voice and not tokenizer.needs_voice
    evaluate_corpus(read_corpus(tmp_path), without, tmp_path / "decoded")
    made = torch.from_numpy(soundfile.read(tmp_path / "decoded" / "a.wav", dtype="float32")[0])
    expected = without.decode(without.encode(speech(1), 16_000), without.make_voice(speech(1), 16_000))
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)  # the file has 16 bits


@pytest.mark.parametrize("stream_chunks", [(10, 50), (33,)])
def test_streams_give_the_wave_of_the_whole(folders, stream_chunks):
    tokenizer = get_audio_tokenizer(
        "sparktts", folders["sparktts"][0], stream_chunks=stream_chunks, **OPTIONS["sparktts"]
    )
    codes = torch.randint(0, 8192, (120,), generator=torch.Generator().manual_seed(0)).tolist()
    stream = tokenizer.stream()
    parts = [stream.push(codes[start : start + 7]) for start in range(0, len(codes), 7)]
    wave = torch.cat([*parts, stream.flush()])
    torch.testing.assert_close(wave, tokenizer.decode(codes), atol=1e-5, rtol=0)
    assert len(torch.cat(parts)) >= (len(codes) - tokenizer.context_groups - 50) * 320


def test_bound_on_the_context_of_a_sample(tokenizer):
    """Uses the gradient of one sample, which rounding cannot hide."""
    model = copy.deepcopy(tokenizer.bicodec).double()
    voice = model.speaker_encoder.detokenize(torch.tensor(OPTIONS["sparktts"]["voice"].codes)[None, None])
    hidden = model.quantizer.detokenize(torch.arange(201)[None]).requires_grad_()
    wave = model.decoder(model.prenet(hidden, voice) + voice.unsqueeze(-1))
    reaches = []
    for sample in (100 * 320, 101 * 320 - 1):
        (gradient,) = torch.autograd.grad(wave[0, 0, sample], hidden, retain_graph=True)
        touched = gradient[0].abs().sum(dim=0).nonzero().flatten()
        reaches += [100 - int(touched[0]), int(touched[-1]) - 100]
    assert tokenizer.context_groups - 3 < max(reaches) <= tokenizer.context_groups


def test_long_audio_is_encoded_in_pieces(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_PER_PIECE", 2)
    wave = speech(5)
    levelled = tokenizer._level(wave)
    monkeypatch.setitem(tokenizer.config, "volume_normalize", False)
    pieces = [tokenizer.encode(piece, 16_000) for piece in levelled.split(32_000)]
    assert [len(piece) for piece in pieces] == [99, 99, 49]
    monkeypatch.setitem(tokenizer.config, "volume_normalize", True)
    assert tokenizer.encode(wave, 16_000) == sum(pieces, [])


def test_volume_does_not_change_the_codes(tokenizer):
    codes = [tokenizer.encode(speech(2) * factor, 16_000) for factor in (1.0, 0.5)]
    assert codes[0] == codes[1]


def test_very_short_waves_have_a_code(tokenizer):
    assert [len(tokenizer.encode(speech(1)[:number], 16_000)) for number in (1, 399, 400, 719, 720)] == [1, 1, 1, 1, 2]


def test_loading_leaves_the_global_generator_alone_and_names_what_is_wrong(folders, tmp_path):
    before = torch.get_rng_state()
    get_audio_tokenizer("sparktts", folders["sparktts"][0])
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="give the folder of SparkAudio/Spark-TTS-0.5B as path"):
        get_audio_tokenizer("sparktts")
    with pytest.raises(FileNotFoundError, match=r"BiCodec/config.yaml is missing"):
        get_audio_tokenizer("sparktts", tmp_path)
    shutil.copytree(folders["sparktts"][0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / module.SPEECH_MODEL / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layers.3.final_layer_norm.bias"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match="missing: encoder.layers.3.final_layer_norm.bias"):
        get_audio_tokenizer("sparktts", tmp_path)


def test_mel_has_the_sizes_of_the_package(tokenizer):
    mel = tokenizer.bicodec.mel_transformer(speech(1)[None])
    assert mel.shape == (1, 32, math.ceil(16_000 / 320) + 1) and mel.min() >= 0

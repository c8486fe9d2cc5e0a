"""Waves to codes against the public tokenizer, pieces of 30 s, memory, and folders of weights."""

import json
import shutil

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_folders import ASSETS, make_speech_decoder
from torch.utils.flop_counter import FlopCounterMode

from vita_audio.audio_tokenizers import get_audio_tokenizer, glm4voice
from vita_audio.audio_tokenizers.glm4voice import PIECES_PER_BATCH, GLM4VoiceTokenizer, piece_features
from vita_audio.files.checkpoint import read_json
from vita_audio.stopwatch import Stopwatch

FOLDER = ASSETS / "vq_wav"
CASES = {case["name"]: case for case in json.loads((FOLDER / "case.json").read_text())["cases"]}
TENSORS = load_file(FOLDER / "tensors.safetensors")


@pytest.fixture(scope="module")
def tokenizer():
    return get_audio_tokenizer("glm4voice", FOLDER)


def read(name, start=0, end=None):
    """Wave (channels, samples) of a test file and its rate."""
    samples, rate = soundfile.read(FOLDER / name, start=start, stop=end, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def case_waves(name):
    waves, rates = zip(
        *(read(u["file"], u.get("start", 0), u.get("end")) for u in CASES[name]["utterances"]), strict=True
    )
    return list(waves), rates[0]


@pytest.mark.parametrize("name", [name for name in CASES if name != "empty"])
def test_codes_match_reference(tokenizer, name):
    waves, rate = case_waves(name)
    assert [wave.shape[1] for wave in waves] == CASES[name]["num_samples"]
    assert tokenizer.encode_batch(waves, rate) == CASES[name]["tokens"]


def test_no_samples_are_an_error_here(tokenizer):
    """The reference returns no codes for no samples, and the caller drops the sample's audio without notice."""
    (wave,), rate = case_waves("empty")
    with pytest.raises(ValueError, match="wave must have samples"):
        tokenizer.encode(wave, rate)


@pytest.mark.parametrize("name", ["clip_0p3", "clip_1s", "exact_multiple", "tiny"])
def test_features_and_hidden_states_match_reference(tokenizer, name):
    (wave,), _ = case_waves(name)
    features, mask = piece_features([wave[0]], tokenizer.feature_extractor, tokenizer.samples_per_code)
    torch.testing.assert_close(features, TENSORS[f"{name}.input_features"], atol=1e-4, rtol=0)
    assert torch.equal(mask, TENSORS[f"{name}.attention_mask"].bool())
    hidden = tokenizer.encoder(features, mask).pre_vq_hidden
    torch.testing.assert_close(hidden, TENSORS[f"{name}.pre_vq_hidden"], atol=5e-4, rtol=0)


def test_codes_do_not_depend_on_the_other_items_in_the_batch(tokenizer):
    speech, rate = read("speech_short.wav")
    waves = [
        speech[:, start : start + length] for start, length in ((0, 5000), (7000, 40000), (300, 1279), (100, 2560))
    ]
    assert tokenizer.encode_batch(waves, rate) == [tokenizer.encode(wave, rate) for wave in waves]


def test_long_audio_is_its_pieces(tokenizer):
    speech, rate = read("speech_long.flac")
    pieces = [tokenizer.encode(piece, rate) for piece in speech.split(480000, dim=1)]
    assert tokenizer.encode(speech, rate) == sum(pieces, [])


def test_ten_minutes_are_encoded_in_small_batches(folders):
    tokenizer = get_audio_tokenizer("glm4voice", folders["glm4voice"][0])
    shapes = []
    tokenizer.encoder.conv1.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    codes = tokenizer.encode(torch.randn(10 * 60 * 8000), 8000)
    assert len(codes) == 10 * 60 * 12.5
    assert sum(shape[0] for shape in shapes) == 20
    assert max(shape[0] for shape in shapes) <= PIECES_PER_BATCH and max(shape[2] for shape in shapes) <= 3000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_folder_loads_as_float32(tokenizer, tmp_path, dtype):
    tokenizer.save_pretrained(tmp_path, dtype)
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype}
    assert read_json(tmp_path / "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    loaded = get_audio_tokenizer("glm4voice", tmp_path)
    assert {value.dtype for value in loaded.encoder.state_dict().values()} == {torch.float32}
    for name, value in tokenizer.encoder.state_dict().items():
        torch.testing.assert_close(loaded.encoder.state_dict()[name], value.to(dtype).float(), rtol=0, atol=0)
    (wave,), rate = case_waves("speech_short")
    assert loaded.encode(wave, rate) == CASES["speech_short"]["tokens"][0]


def test_fingerprint_depends_on_everything_that_decides_the_codes(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert get_audio_tokenizer("glm4voice", tmp_path).fingerprint == tokenizer.fingerprint
    weights = load_file(tmp_path / "model.safetensors")
    weights["codebook.weight"][0, 0] += 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert get_audio_tokenizer("glm4voice", tmp_path).fingerprint != tokenizer.fingerprint


def test_stream_does_not_depend_on_how_codes_are_pushed(folders):
    tokenizer = get_audio_tokenizer("glm4voice", *folders["glm4voice"], num_steps=2, stream_chunks=(6, 12))
    codes = [code * 7 % tokenizer.vocab_size for code in range(33)]
    one_by_one, at_once = tokenizer.stream(), tokenizer.stream()
    parts = [one_by_one.push([code]) for code in codes]
    sizes = [number for number, part in enumerate(parts, start=1) if len(part)]
    assert sizes == [6, 18, 30]
    expected = torch.cat([at_once.push(codes), at_once.flush()])
    assert torch.equal(torch.cat([*parts, one_by_one.flush()]), expected)


def test_one_sample_is_one_code(tokenizer):
    assert len(tokenizer.encode(torch.ones(1), 16000)) == len(tokenizer.encode(torch.ones(1), 48000)) == 1


def test_released_sizes_of_codes_and_pieces(tokenizer):
    assert (tokenizer.sample_rate, tokenizer.output_rate, tokenizer.frame_rate) == (16000, 22050, 12.5)
    assert (tokenizer.samples_per_code, tokenizer.samples_per_piece) == (1280, 480000)


def test_decoding_without_decoder_says_what_to_do(tokenizer):
    for call in (lambda: tokenizer.decode([1]), tokenizer.stream):
        with pytest.raises(ValueError, match="give decoder_path"):
            call()


def test_decoder_of_another_vocabulary_is_refused(tokenizer):
    with pytest.raises(ValueError, match="must know the tokenizer's 128 codes, got a decoder of 64"):
        GLM4VoiceTokenizer(tokenizer.encoder, tokenizer.feature_extractor, make_speech_decoder(64))


def test_embedded_weights_are_the_default(folders, monkeypatch):
    tokenizer_folder, decoder_folder = folders["glm4voice"]
    monkeypatch.setattr(glm4voice, "EMBEDDED_TOKENIZER", tokenizer_folder)
    monkeypatch.setattr(glm4voice, "EMBEDDED_DECODER", decoder_folder)
    loaded = [
        get_audio_tokenizer("glm4voice"),
        get_audio_tokenizer("glm4voice", "embedded"),
        get_audio_tokenizer("glm4voice", tokenizer_folder, "embedded"),
        get_audio_tokenizer("glm4voice", None, decoder_folder),
    ]
    assert len({tokenizer.fingerprint for tokenizer in loaded}) == 1
    waves = [tokenizer.decode([1, 2, 3]) for tokenizer in loaded]
    assert all(torch.equal(wave, waves[0]) for wave in waves)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("preprocessor_config.json", None, "preprocessor_config.json is missing"),
        ("preprocessor_config.json", b'{"feature_size": 1', "preprocessor_config.json is not JSON"),
        ("model.safetensors", None, "no weights in"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "model.safetensors is a Git LFS pointer",
        ),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{", "model.safetensors is cut off or damaged"),
    ],
)
def test_missing_and_damaged_files_are_named(folders, tmp_path, name, content, message):
    shutil.copytree(folders["glm4voice"][0], tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    if content is not None:
        (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        get_audio_tokenizer("glm4voice", tmp_path / "copy")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/nowhere"):
        get_audio_tokenizer("glm4voice", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="somebody/glm-4-voice-tokenizer is not a local folder .*offline"):
        get_audio_tokenizer("glm4voice", "somebody/glm-4-voice-tokenizer", offline=True)


def test_many_files_of_any_rate_and_length_equal_single_ones(tokenizer):
    """More pieces than fit into a batch, with pieces of several files in one."""
    generator = torch.Generator().manual_seed(0)
    lengths = (100, 480_001, 24_000, 1280, 960_000, 1, 77_777, 5_000, 61_003, 12_801)
    waves = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    together = tokenizer.encode_batch(waves, 16_000)
    assert sum(-(-length // 480_000) for length in lengths) > PIECES_PER_BATCH
    assert together == [tokenizer.encode(wave, 16_000) for wave in waves]
    assert [len(codes) for codes in together] == [
        sum(-(-len(piece) // 1280) for piece in wave.split(480_000)) for wave in waves
    ]


def test_voice_prompt_changes_the_wave_and_is_not_part_of_it(folders):
    tokenizer = get_audio_tokenizer("glm4voice", *folders["glm4voice"], num_steps=1, stream_chunks=(10,))
    codes, sample = list(range(20)), torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    voice = tokenizer.make_voice(sample, 16_000)
    assert voice.codes == tokenizer.encode(sample, 16_000) and voice.mel.shape == (80, 107)
    stream = tokenizer.stream(voice)
    waves = [tokenizer.decode(codes), tokenizer.decode(codes, voice), torch.cat([stream.push(codes), stream.flush()])]
    assert abs(len(waves[0]) - len(waves[1])) <= 256 and len(waves[1]) == len(waves[2])
    assert not torch.allclose(waves[0][:5000], waves[1][:5000])
    embedded = tokenizer.decode(codes, glm4voice.FlowVoice(embedding=torch.ones(8)))
    assert not torch.allclose(waves[0], embedded)


def test_steps_of_a_stream_may_grow(folders, monkeypatch):
    tokenizer = get_audio_tokenizer(
        "glm4voice", *folders["glm4voice"], num_steps=4, stream_chunks=(10,), stream_steps=(1, 3)
    )
    used, solve = [], tokenizer.decoder.flow.inference

    def count(*arguments, num_steps, **options):
        used.append(num_steps)
        return solve(*arguments, num_steps=num_steps, **options)

    monkeypatch.setattr(tokenizer.decoder.flow, "inference", count)
    stream = tokenizer.stream()
    stream.push(range(35))
    stream.flush()
    tokenizer.decode(range(5))
    assert used == [1, 3, 3, 3, 4]
    with pytest.raises(ValueError, match="stream_steps must be at least 1, got 10 and \\(0,\\)"):
        GLM4VoiceTokenizer(tokenizer.encoder, tokenizer.feature_extractor, stream_steps=(0,))


def test_streams_of_the_embedded_decoder_take_fewer_steps_unless_steps_are_chosen(folders, monkeypatch):
    tokenizer_folder, decoder_folder = folders["glm4voice"]
    monkeypatch.setattr(glm4voice, "EMBEDDED_TOKENIZER", tokenizer_folder)
    monkeypatch.setattr(glm4voice, "EMBEDDED_DECODER", decoder_folder)

    def settings(*folders, **options):
        tokenizer = get_audio_tokenizer("glm4voice", *folders, **options)
        return tokenizer.stream_chunks, tokenizer.stream_steps, tokenizer.num_steps

    assert settings() == settings(None, decoder_folder) == ((8, 12, 25, 50), (6,), 10)
    released = ((10, 15, 25, 50), (10,), 10)
    assert settings(tokenizer_folder, decoder_folder) == released
    assert settings(stream_chunks=(7,)) == ((7,), (10,), 10)
    assert settings(num_steps=2) == (released[0], (2,), 2)


@pytest.mark.parametrize("stream_chunks", [glm4voice.STREAM_CHUNKS, glm4voice.EMBEDDED_STREAM["stream_chunks"]])
def test_a_late_second_costs_little_more_than_an_early_one(folders, stream_chunks):
    """Floating-point operations of second 40 over those of second 2, each piece's spread evenly over its samples."""
    tokenizer = get_audio_tokenizer("glm4voice", *folders["glm4voice"], stream_chunks=stream_chunks, num_steps=1)
    stream, operations, work = tokenizer.stream(), 0, []
    with FlopCounterMode(display=False) as counter:
        for index in range(560):
            if len(wave := stream.push([index % tokenizer.vocab_size])):
                work.append(torch.full(wave.shape, (counter.get_total_flops() - operations) / len(wave)))
                operations = counter.get_total_flops()
    seconds = [float(second.sum()) for second in torch.cat(work).double().split(tokenizer.output_rate)]
    assert len(seconds) > 40 and 0 < seconds[39] <= 1.2 * seconds[1]


def test_time_of_a_stream_is_measured_by_stage(folders):
    tokenizer = get_audio_tokenizer("glm4voice", *folders["glm4voice"], num_steps=1)
    ticks = iter(range(100))
    stopwatch = Stopwatch(clock=lambda: next(ticks))
    stream = tokenizer.stream(stopwatch=stopwatch)
    assert len(stream.push(range(10))) and stopwatch.seconds == {"flow": 1, "vocoder": 1}
    stream.push(range(15))
    stream.flush()
    assert stopwatch.seconds == {"flow": 3, "vocoder": 3}


def test_released_noise_gives_another_wave_of_the_same_codes(folders):
    waves = [
        get_audio_tokenizer("glm4voice", *folders["glm4voice"], num_steps=1, released_noise=released).decode([1, 2, 3])
        for released in (False, True, True)
    ]
    assert torch.equal(waves[1], waves[2]) and not torch.equal(waves[0], waves[1])


def test_incomplete_weights_are_named(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["conv1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing: conv1.weight"):
        get_audio_tokenizer("glm4voice", tmp_path)


def test_the_encoder_is_on_the_device_that_was_asked_for(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert get_audio_tokenizer("glm4voice", tmp_path, device="meta").encoder.device.type == "meta"

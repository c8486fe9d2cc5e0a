"""Codes to wave: the reference's numbers, and streaming that stays close to whole decoding and loses nothing."""

import os
import shutil

import pytest
import torch
from released_streaming import ReleasedStream, released_chunk
from safetensors.torch import load_file, save_file

from vita_audio.speech_decoder.glm4voice import decoder as module
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.streaming import FlowVoice, FrameNoise, start_vocoder, vocode


def _codes(number: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (number,), generator=torch.Generator().manual_seed(seed)).tolist()


def _stream(decoder: SpeechDecoder, codes: list[int], sizes: list[int], **settings) -> list[torch.Tensor]:
    """Decode `codes` in chunks of these sizes."""
    assert sum(sizes) == len(codes)
    state, waves, first = decoder.start(num_steps=2, **settings), [], 0
    for index, size in enumerate(sizes):
        waves.append(decoder.decode_chunk(state, codes[first : first + size], final=index == len(sizes) - 1))
        first += size
    return waves


def _stream_mel(decoder: SpeechDecoder, codes: list[int], sizes: list[int], **settings) -> torch.Tensor:
    """Return the mel (bands, frames) that a stream vocodes, all of which stays in the context."""
    state, first = decoder.start(**settings), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CONTEXT_CODES", 10**6)
        for index, size in enumerate(sizes):
            decoder.decode_chunk(state, codes[first : first + size], final=index == len(sizes) - 1)
            first += size
    mel = state.mel[0]
    assert mel.shape == (80, decoder.flow.num_frames(len(codes)))
    return mel


def _relative_error(wave: torch.Tensor, expected: torch.Tensor) -> float:
    assert wave.shape == expected.shape
    return float((wave - expected).norm() / expected.norm())


WHOLE = pytest.mark.parametrize(
    ("file", "name", "num_steps"),
    [("token2wav", "full.37.10", 10), ("token2wav_more", "full.10.10", 10), ("token2wav_more", "full.37.1", 1)],
)


@WHOLE
@pytest.mark.parametrize("has_noise", [False, True])
def test_reference_whole_decoding(decoder, golden, file, name, num_steps, has_noise):
    tensors = golden(file)
    mel, wave = released_chunk(
        decoder, ReleasedStream(), tensors[f"{name}.token"], final=True, num_steps=num_steps, has_noise=has_noise
    )
    torch.testing.assert_close(mel, tensors[f"{name}.mel"], atol=1e-4, rtol=0)
    expected = tensors[f"{name}.{'wav_seed42' if has_noise else 'wav_zero_draws'}"]
    assert _relative_error(wave, expected) < 5e-3  # the golden case's tolerance: phase is a sum over all samples


@WHOLE
def test_reference_whole_decoding_with_its_own_noise(decoder, golden, file, name, num_steps):
    """One call of `decode` gives the released wave: default seed, and the global generator as it was."""
    tensors, before = golden(file), torch.get_rng_state()
    wave = decoder.decode(tensors[f"{name}.token"][0].tolist(), num_steps=num_steps, released_noise=True)
    assert _relative_error(wave[None], tensors[f"{name}.wav_seed42"]) < 5e-3
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("index", [0, 1, 4, 10])  # ten steps and one, the last two with a speaker embedding
def test_reference_mels_from_codes_alone(decoder, golden, facts, index):
    tensors, case = golden("flow"), next(case for case in facts("flow")["cases"] if case["index"] == index)
    codes, embedding = tensors[f"{index}.token"][0].tolist(), tensors.get(f"{index}.embedding")
    voice = FlowVoice(embedding=None if embedding is None else embedding[0])
    state = decoder.start(voice, num_steps=case["option_steps"])
    decoder._draw_as_released(state, decoder.flow.num_frames(len(codes)), 42)
    decoder.decode_chunk(state, codes, final=True)
    torch.testing.assert_close(state.mel, tensors[f"{index}.mel"], atol=1e-4, rtol=0)


def test_released_noise_also_serves_a_voice_prompt_and_long_sequences(decoder, monkeypatch):
    monkeypatch.setattr(module, "MAX_WHOLE_CODES", 15)
    prompt = FlowVoice(_codes(12, seed=9), torch.randn(80, 82))
    waves = [decoder.decode(_codes(40), voice, num_steps=1, released_noise=True) for voice in (None, prompt)]
    assert len(waves[0]) == decoder.flow.num_frames(40) * 256
    assert len(waves[1]) == (decoder.flow.num_frames(52) - decoder.flow.num_frames(12)) * 256


@pytest.mark.parametrize("name", ["stream_zero", "stream_seed42"])
def test_reference_streams(decoder, golden, facts, name):
    tensors = golden("token2wav")
    case = next(case for case in facts("token2wav")["streams"] if case["name"] == name)
    stream, chunks = ReleasedStream(), tensors[f"{name}.token"].split(case["chunks"], dim=1)
    for index, (codes, record) in enumerate(zip(chunks, case["records"], strict=True)):
        mel, wave = released_chunk(
            decoder,
            stream,
            codes,
            final=record["finalize"],
            num_steps=case["option_steps"],
            has_noise=name == "stream_seed42",
        )
        assert (mel.shape[2], wave.shape[1]) == (record["returned_mel_frames"], record["returned_samples"])
        torch.testing.assert_close(mel, tensors[f"{name}.{index}.mel"], atol=1e-4, rtol=0)
        assert _relative_error(wave, tensors[f"{name}.{index}.wav"]) < 5e-3
    # Where the reference comes out short, ours does not.
    ours = sum(len(wave) for wave in _stream(decoder, tensors[f"{name}.token"][0].tolist(), case["chunks"]))
    assert case["total_samples"] < ours == case["samples_if_decoded_at_once"]


def test_reference_stream_in_blocks_of_the_encoder(decoder, golden):
    """The loop of the released GLM-4-Voice demo: a block of codes at a time, all earlier ones as a prompt."""
    tensors, stream = golden("token2wav_more"), ReleasedStream()
    blocks = tensors["stream_inference.token"].split(10, dim=1)
    waves = [
        released_chunk(decoder, stream, codes, final=index == len(blocks) - 1, num_steps=10, has_noise=False)[1]
        for index, codes in enumerate(blocks)
    ]
    assert _relative_error(torch.cat(waves, dim=1), tensors["stream_inference.wav"].reshape(1, -1)) < 5e-3


def test_reference_decoding_from_the_beginning_for_every_chunk(decoder, golden, facts):
    """VITA-Audio decodes all codes so far for each chunk and plays what is new."""
    tensors, played = golden("token2wav"), 0
    records = next(case for case in facts("token2wav")["streams"] if case["name"] == "vita_stream")["records"]
    for index, record in enumerate(records):
        codes = tensors["vita_stream.token"][:, : record["tokens_so_far"]]
        _, wave = released_chunk(
            decoder, ReleasedStream(), codes, final=True, num_steps=record["option_steps"], has_noise=False
        )
        assert wave.shape[1] == record["total_samples"]
        assert _relative_error(wave[0, played:], tensors[f"vita_stream.{index}.wav"]) < 5e-3
        played = wave.shape[1]


def test_whole_decoding_is_flow_then_vocoder(decoder):
    codes = _codes(23)
    wave = decoder.decode(codes, num_steps=3, seed=5)
    num_frames = decoder.flow.num_frames(23)
    noise = FrameNoise(80, torch.Generator().manual_seed(5)).read(0, num_frames).T[None]
    mel = decoder.flow.inference(torch.tensor([codes]), noise, num_steps=3)
    expected = vocode(decoder.hift, start_vocoder(decoder.hift, 6), mel, num_frames)
    assert torch.equal(wave, expected)
    assert wave.dtype == torch.float32 and wave.shape == (num_frames * 256,) and wave.abs().max() <= 0.99


def test_decoding_depends_on_the_seed_only(decoder):
    codes, before = _codes(12), torch.get_rng_state()
    first, again = (decoder.decode(codes, num_steps=1, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, decoder.decode(codes, num_steps=1, seed=4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sizes", [[60], [10] * 6, [25, 0, 35], [1, 2, 40, 3, 14], [60, 0], [5] * 12])
@pytest.mark.parametrize("overlap_codes", [0, 5])
def test_chunks_add_up_to_the_whole_length(decoder, monkeypatch, sizes, overlap_codes):
    monkeypatch.setattr(module, "CONTEXT_CODES", 20)
    monkeypatch.setattr(module, "OVERLAP_CODES", overlap_codes)
    waves = _stream(decoder, _codes(60), sizes)
    assert sum(len(wave) for wave in waves) == decoder.flow.num_frames(60) * 256


def test_vocoder_stream_equals_whole(decoder):
    """Given the mel, chunked samples are the whole run's to rounding, however the frames are cut."""
    mel = torch.randn(1, 80, 130, generator=torch.Generator().manual_seed(0))
    whole = vocode(decoder.hift, start_vocoder(decoder.hift, 1), mel, 130)
    for sizes in ([40, 1, 49, 40], [26] * 5):
        state, first, waves = start_vocoder(decoder.hift, 1), 0, []
        for size in sizes:
            future = decoder.hift.receptive_frames + 5  # the F0 predictor looks five frames ahead
            waves.append(vocode(decoder.hift, state, mel[:, :, first : first + size + future], size))
            first += size
        torch.testing.assert_close(torch.cat(waves), whole, atol=2e-5, rtol=0)


def test_streamed_mel_is_close_to_the_whole_one(decoder):
    """The flow's attention and normalisation use the whole utterance, so earlier chunks cannot be exact.

    On these random weights the mean difference is 0.07 of the mel's standard deviation, another seed's 0.96. The last
    chunk sees the whole utterance; past the cross-fade it is exact.
    """
    codes = _codes(80)
    whole = _stream_mel(decoder, codes, [80], num_steps=2)
    streamed = _stream_mel(decoder, codes, [20] * 4, num_steps=2)
    assert float((streamed - whole).abs().mean()) < 0.1 * float(whole.std())
    last = decoder.flow.num_frames(60)
    torch.testing.assert_close(streamed[:, last:], whole[:, last:], atol=1e-4, rtol=0)
    other_seed = _stream_mel(decoder, codes, [80], num_steps=2, seed=43)
    assert float((other_seed - whole).abs().mean()) > 0.9 * float(whole.std())


def test_bounded_context_stays_close_to_the_whole_mel(decoder, monkeypatch):
    """Differences are at most 0.14 of the standard deviation; 0.55 if windows did not begin on the UNet's stride."""
    codes = _codes(120)
    monkeypatch.setattr(module, "CONTEXT_CODES", 20)
    state = decoder.start(num_steps=2)
    noise = FrameNoise(80, torch.Generator().manual_seed(42)).read(0, decoder.flow.num_frames(120)).T[None]
    whole = decoder.flow.inference(torch.tensor([codes]), noise, num_steps=2)[0]
    for first in range(0, 120, 20):
        decoder.decode_chunk(state, codes[first : first + 20], final=first == 100)
        kept = whole[:, state.position - state.mel.shape[2] : state.position]
        assert float((state.mel[0] - kept).abs().mean()) < 0.2 * float(whole.std())
    assert state.first_code > 0


def test_work_per_chunk_is_bounded(decoder, monkeypatch):
    monkeypatch.setattr(module, "CONTEXT_CODES", 20)
    state = decoder.start(num_steps=1)
    sizes = []
    for index in range(14):
        decoder.decode_chunk(state, _codes(10, seed=index))
        sizes.append((len(state.codes), state.mel.shape[2], len(state.mel_noise.rows), len(state.vocoder.noise.rows)))
    codes, frames, mel_noise, source_noise = map(max, zip(*sizes, strict=True))
    assert codes <= 40 and frames <= decoder.flow.num_frames(40)
    assert mel_noise <= decoder.flow.num_frames(50) and source_noise <= decoder.flow.num_frames(50)
    assert state.vocoder.mel.shape[2] == decoder.hift.receptive_frames


def test_streams_side_by_side_equal_one_after_another(decoder):
    inputs = [_codes(40, seed=1), _codes(40, seed=2)]
    alone = [torch.cat(_stream(decoder, codes, [15, 15, 10], seed=seed)) for seed, codes in enumerate(inputs)]
    states = [decoder.start(num_steps=2, seed=seed) for seed in range(2)]
    waves = [[], []]
    for first, last in ((0, 15), (15, 30), (30, 40)):
        for stream in range(2):
            waves[stream].append(decoder.decode_chunk(states[stream], inputs[stream][first:last], final=last == 40))
    for stream in range(2):
        assert torch.equal(torch.cat(waves[stream]), alone[stream])


def test_flushing_without_new_codes_releases_the_held_back_frames(decoder):
    codes = _codes(30)
    whole = decoder.decode(codes, num_steps=2)
    first, rest = _stream(decoder, codes, [30, 0])
    # There are no new codes, so the held back frames equal the whole run's; only the vocoder's window differs.
    torch.testing.assert_close(torch.cat([first, rest]), whole, atol=2e-5, rtol=0)
    assert len(rest) == decoder.flow.num_frames(5) * 256


def test_chunks_are_cross_faded(decoder):
    """After a seam the mel fades from the frames of the previous chunk to those of the next one."""
    codes = _codes(40)
    state = decoder.start(num_steps=2)
    decoder.decode_chunk(state, codes[:20])
    seam, expected = state.position, state.held_back
    decoder.decode_chunk(state, codes[20:], final=True)
    noise = FrameNoise(80, torch.Generator().manual_seed(42)).read(0, decoder.flow.num_frames(40)).T[None]
    made = decoder.flow.inference(torch.tensor([codes]), noise, num_steps=2)[:, :, seam:]
    num_faded = expected.shape[2]
    rise = torch.arange(1, num_faded + 1) / (num_faded + 1)
    faded = rise * made[:, :, :num_faded] + (1 - rise) * expected
    torch.testing.assert_close(state.mel[:, :, seam:], torch.cat([faded, made[:, :, num_faded:]], dim=2))


def test_voice_prompt_is_left_out_and_changes_the_voice(decoder):
    codes = _codes(20)
    voice = FlowVoice(_codes(13, seed=9), torch.randn(80, 85, generator=torch.Generator().manual_seed(0)))
    plain = decoder.decode(codes, num_steps=2)
    prompted = decoder.decode(codes, voice, num_steps=2)
    # 85 frames are 12 whole codes; the 13th code of the prompt is dropped.
    expected = decoder.flow.num_frames(32) - decoder.flow.num_frames(12)
    assert len(prompted) == expected * 256
    assert not torch.allclose(plain[:10000], prompted[:10000])
    waves = _stream(decoder, codes, [10, 10], voice=voice)
    assert sum(len(wave) for wave in waves) == len(prompted)


def test_speaker_embedding_changes_the_voice(decoder):
    codes = _codes(10)
    plain = decoder.decode(codes, num_steps=1)
    assert not torch.allclose(plain, decoder.decode(codes, FlowVoice(embedding=torch.ones(192)), num_steps=1))


def test_long_sequences_are_decoded_in_pieces(decoder, monkeypatch):
    assert module.MAX_WHOLE_CODES > 25
    monkeypatch.setattr(module, "MAX_WHOLE_CODES", 25)
    codes = _codes(60)
    assert torch.equal(decoder.decode(codes, num_steps=2), torch.cat(_stream(decoder, codes, [25, 25, 10])))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_very_short_inputs(decoder, number):
    wave = decoder.decode(_codes(number), num_steps=1)
    assert wave.shape == (decoder.flow.num_frames(number) * 256,) and wave.isfinite().all()


def test_wrong_use_is_refused_and_leaves_the_stream_usable(decoder):
    state = decoder.start(num_steps=1)
    with pytest.raises(ValueError, match=r"audio codes must be in 0..255, got 2 others such as \[256, -1\]"):
        decoder.decode_chunk(state, [1, 256, -1])
    wave = decoder.decode_chunk(state, [1, 2, 3], final=True)
    assert torch.equal(wave, decoder.decode([1, 2, 3], num_steps=1))
    with pytest.raises(ValueError, match="this stream is finished"):
        decoder.decode_chunk(state, [4])
    with pytest.raises(ValueError, match="a voice must have both codes and mel or neither"):
        decoder.start(FlowVoice([1, 2]))
    with pytest.raises(ValueError, match=r"mel of a voice of 2 codes must have shape \(80, 13\), .* got \(80, 90\)"):
        decoder.start(FlowVoice([1, 2], torch.zeros(80, 90)))
    with pytest.raises(ValueError, match=r"the mel of a voice must have shape \(80, frames\), got \(1, 80, 13\)"):
        decoder.start(FlowVoice([1, 2], torch.zeros(1, 80, 13)))
    with pytest.raises(ValueError, match=r"a speaker embedding must have shape \(192,\), got \(1, 192\)"):
        decoder.start(FlowVoice(embedding=torch.zeros(1, 192)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_decoder_loads_the_same(decoder, tmp_path, dtype):
    decoder.save_pretrained(tmp_path, dtype)
    loaded = SpeechDecoder.from_pretrained(tmp_path)
    assert loaded.config == decoder.config
    assert not (loaded.flow.training or loaded.hift.training)
    for ours, theirs in ((decoder.flow, loaded.flow), (decoder.hift, loaded.hift)):
        for name, value in theirs.state_dict().items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, ours.state_dict()[name].to(dtype).float(), atol=0, rtol=0)


def test_pickled_weights_load_too(tiny_folder, decoder, tmp_path):
    shutil.copy(tiny_folder / "config.yaml", tmp_path)
    for name in ("flow", "hift"):
        torch.save(load_file(tiny_folder / f"{name}.safetensors"), tmp_path / f"{name}.pt")
    loaded = SpeechDecoder.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(_codes(5), num_steps=1), decoder.decode(_codes(5), num_steps=1))


def test_wrong_weights_are_named(tiny_folder, tmp_path):
    shutil.copy(tiny_folder / "config.yaml", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no flow.safetensors or flow.pt in {tmp_path}"):
        SpeechDecoder.from_pretrained(tmp_path)
    weights = load_file(tiny_folder / "flow.safetensors")
    weights["another"] = weights.pop("encoder_proj.bias")
    weights["encoder_proj.weight"] = weights["encoder_proj.weight"][:3].clone()
    save_file(weights, tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match="flow.safetensors does not fit .*config.yaml") as error:
        SpeechDecoder.from_pretrained(tmp_path)
    for part in ("missing: encoder_proj.bias (1)", "unexpected: another", "another shape: encoder_proj.weight"):
        assert part in str(error.value)
    whole = (tmp_path / "flow.safetensors").read_bytes()
    for damaged, message in (
        (whole[:5000], "flow.safetensors is cut off or damaged"),
        (whole[:-5000], "flow.safetensors is cut off"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "flow.safetensors is a Git LFS pointer"),
    ):
        (tmp_path / "flow.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            SpeechDecoder.from_pretrained(tmp_path)
    (tmp_path / "flow.safetensors").unlink()
    torch.save([1, 2], tmp_path / "flow.pt")
    with pytest.raises(ValueError, match="flow.pt cannot be read as weights: it holds a list, not a state dict"):
        SpeechDecoder.from_pretrained(tmp_path)


class _Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_nothing_in_pickled_weights_runs(tiny_folder, tmp_path):
    shutil.copy(tiny_folder / "config.yaml", tmp_path)
    torch.save({"weight": _Attack(tmp_path / "made")}, tmp_path / "flow.pt")
    with pytest.raises(ValueError, match="flow.pt cannot be read as weights"):
        SpeechDecoder.from_pretrained(tmp_path)
    assert not (tmp_path / "made").exists()


def test_frame_noise_depends_on_position_alone():
    whole = FrameNoise(16, torch.Generator().manual_seed(0)).read(0, 20)
    pieces = FrameNoise(16, torch.Generator().manual_seed(0))
    assert torch.equal(pieces.read(0, 3), whole[:3])
    assert torch.equal(pieces.read(2, 9), whole[2:9])
    assert torch.equal(pieces.read(5, 7), whole[5:7])
    assert torch.equal(pieces.read(5, 20), whole[5:])
    with pytest.raises(ValueError, match="noise before frame 5 is gone, asked for frame 4"):
        pieces.read(4, 6)
    drawn = FrameNoise(16, None, whole[:6])
    assert torch.equal(drawn.read(2, 6), whole[2:6])
    with pytest.raises(ValueError, match="noise was drawn for 6 frames, asked for 7"):
        drawn.read(3, 7)
    with pytest.raises(ValueError, match="multiple of 16, got 9"):
        FrameNoise(9, torch.Generator())

"""CosyVoice 2 as a whole and as a stream, its folder, and wrong use."""

import shutil
from dataclasses import replace

import pytest
import torch
from cosyvoice2_tiny import ASSETS, FLOW_PARAMETERS, HIFT_PARAMETERS, make_tiny_decoder
from safetensors.torch import load_file

from vita_audio.speech_decoder.config import EncoderConfig, EstimatorConfig
from vita_audio.speech_decoder.cosyvoice2 import decoder as module
from vita_audio.speech_decoder.cosyvoice2.decoder import CosyVoice2Decoder, read_sizes
from vita_audio.speech_decoder.cosyvoice2.flow import CosyVoice2Flow, CosyVoice2FlowConfig
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.speech_decoder.streaming import FlowVoice, start_vocoder, vocode

TENSORS = load_file(ASSETS / "tensors.safetensors")
CODES = TENSORS["codes"][0].tolist()
VOICE = FlowVoice(TENSORS["prompt_codes"][0].tolist(), TENSORS["prompt_mel"][0].T, TENSORS["embedding"][0])


@pytest.fixture(scope="module")
def decoder():
    return make_tiny_decoder()


def stream(decoder, codes, step, voice=None):
    state, waves = decoder.start(voice, num_steps=2), []
    for start in range(0, len(codes), step):
        waves.append(decoder.decode_chunk(state, codes[start : start + step]))
    return [*waves, decoder.decode_chunk(state, [], final=True)]


@pytest.mark.parametrize(("name", "number", "voice"), [("whole", 60, None), ("prompted", 40, VOICE)])
def test_whole_decoding_vocodes_the_reference_mel(decoder, name, number, voice):
    before = torch.get_rng_state()
    wave = decoder.decode(CODES[:number], voice)
    assert wave.shape == (number * 960,) and wave.abs().max() <= 0.99 and torch.equal(before, torch.get_rng_state())
    expected = vocode(decoder.hift, start_vocoder(decoder.hift, 42), TENSORS[f"{name}.mel"], 2 * number)
    # the phase of the excitation is a sum over all frames
    assert (wave - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize("step", [1, 7, 60])
@pytest.mark.parametrize("voice", [None, VOICE])
def test_stream_equals_chunked_decoding(decoder, step, voice):
    waves = stream(decoder, CODES, step, voice)
    whole = decoder.decode(CODES, voice, num_steps=2, is_chunked=True)
    torch.testing.assert_close(torch.cat(waves), whole, atol=2e-4, rtol=0)
    chunk_size = 25 - (len(voice.codes) if voice else 0)
    first = next(number for number, wave in enumerate(waves, start=1) if len(wave)) * step
    assert chunk_size + 3 <= first < chunk_size + 3 + step + 25


def test_full_and_chunked_attention_differ(decoder):
    waves = [decoder.decode(CODES, num_steps=2, is_chunked=is_chunked) for is_chunked in (False, True)]
    assert waves[0].shape == waves[1].shape and not torch.allclose(waves[0], waves[1], atol=1e-2)


def test_long_streams_keep_a_bounded_context(decoder, monkeypatch):
    monkeypatch.setattr(module, "CONTEXT_CODES", 50)
    codes, sizes = CODES * 4, []
    state = decoder.start(VOICE, num_steps=1)
    waves = []
    for start in range(0, len(codes), 20):
        waves.append(decoder.decode_chunk(state, codes[start : start + 20]))
        sizes.append((len(state.codes), state.mel.shape[2]))
    waves.append(decoder.decode_chunk(state, [], final=True))
    assert len(torch.cat(waves)) == len(codes) * 960
    assert max(size for size, _ in sizes) <= 50 + 25 + 28 + 20 and state.first > 0
    assert max(frames for _, frames in sizes) <= decoder.hift.receptive_frames + 6 + 50


def test_long_utterances_are_chunked(decoder, monkeypatch):
    monkeypatch.setattr(module, "MAX_WHOLE_CODES", 59)
    chunked = decoder.decode(CODES, num_steps=2, is_chunked=True)
    assert torch.equal(decoder.decode(CODES, num_steps=2), chunked)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_very_short_inputs(decoder, number):
    assert decoder.decode(CODES[:number], num_steps=1).shape == (number * 960,)
    assert len(torch.cat(stream(decoder, CODES[:number], 1))) == number * 960


def test_prompts_are_cut_to_where_codes_and_mel_end(decoder):
    longer = replace(VOICE, mel=torch.cat([VOICE.mel, torch.ones(80, 5)], dim=1))
    waves = [decoder.decode(CODES[:9], voice, num_steps=1) for voice in (longer, VOICE)]
    assert torch.equal(*waves)
    assert len(decoder.start(replace(VOICE, mel=VOICE.mel[:, :9])).prompt_codes) == 4


def test_wrong_use_is_refused(decoder):
    with pytest.raises(ValueError, match=r"audio codes must be in 0..99, got 1 others such as \[100\]"):
        decoder.decode([100])
    with pytest.raises(ValueError, match="a voice must have both codes and mel or neither"):
        decoder.start(FlowVoice([1]))
    with pytest.raises(ValueError, match=r"must have shape \(192,\), got \(1, 192\)"):
        decoder.start(FlowVoice(embedding=torch.zeros(1, 192)))
    state = decoder.start()
    decoder.decode_chunk(state, [], final=True)
    with pytest.raises(ValueError, match="this stream is finished"):
        decoder.decode_chunk(state, [1])


def test_released_layout(tmp_path):
    flow, hift = read_sizes(ASSETS / "cosyvoice2.yaml")
    assert flow.encoder == EncoderConfig(
        input_size=32, output_size=32, attention_heads=4, linear_units=48, num_blocks=2, block_size=25
    )
    assert (flow.vocab_size, flow.estimator.channels, hift.upsample_rates) == (100, (24,), (8, 5, 3))
    text = (ASSETS / "cosyvoice2.yaml").read_text(encoding="utf-8")
    for old, new, message in (
        ("hift: !new", "vocoder: !new", "KeyError\\('hift'\\)"),
        ("pre_lookahead_len: 3", "pre_lookahead_len: 4", "got {'pre_lookahead_len': 4}"),
        ("attention_heads: 4", "attention_heads: 5", "multiple of attention_heads"),
    ):
        (tmp_path / "cosyvoice2.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ValueError, match=f"cosyvoice2.yaml does not describe .*{message}"):
            read_sizes(tmp_path / "cosyvoice2.yaml")
    with pytest.raises(FileNotFoundError, match="cosyvoice2.yaml is missing"):
        CosyVoice2Decoder.from_pretrained(tmp_path / "nowhere")


def test_released_sizes():
    _, hift = read_sizes(ASSETS / "cosyvoice2.yaml")
    hift = hift.__class__(**{**hift.__dict__, "base_channels": 512, "f0_channels": 512})
    with torch.device("meta"):
        flow, vocoder = CosyVoice2Flow(CosyVoice2FlowConfig()), HiFTGenerator(hift)
    assert sum(value.numel() for value in flow.state_dict().values()) == FLOW_PARAMETERS
    assert sum(value.numel() for value in vocoder.state_dict().values()) == HIFT_PARAMETERS


def test_more_scales_are_refused():
    with pytest.raises(ValueError, match=r"one scale, got channels \(256, 256\)"):
        CosyVoice2FlowConfig(estimator=EstimatorConfig())


def test_weights_of_trainers_have_other_names(decoder, tmp_path):
    """They have a prefix, the names of torch's older weight norm, and counters next to the weights."""
    shutil.copy(ASSETS / "cosyvoice2.yaml", tmp_path)
    torch.save(load_file(ASSETS / "flow.safetensors") | {"epoch": 3, "step": 10}, tmp_path / "flow.pt")
    weights = {f"generator.{name}": value for name, value in decoder.hift.state_dict().items()}
    assert "generator.conv_pre.weight_g" in weights
    torch.save(weights, tmp_path / "hift.pt")
    loaded = CosyVoice2Decoder.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(CODES[:5], num_steps=1), decoder.decode(CODES[:5], num_steps=1))

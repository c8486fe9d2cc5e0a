"""The flow and vocoder of CosyVoice 2 against the public classes' numbers on tiny random weights."""

import pytest
import torch
from cosyvoice2_tiny import ASSETS, make_tiny_decoder
from safetensors.torch import load_file

from vita_audio.speech_decoder.cosyvoice2.flow import released_noise
from vita_audio.speech_decoder.hift import SourceNoise
from vita_audio.speech_decoder.streaming import start_vocoder, vocode

TENSORS = load_file(ASSETS / "tensors.safetensors")


@pytest.fixture(scope="module")
def decoder():
    return make_tiny_decoder()


@pytest.fixture(scope="module")
def flow(decoder):
    return decoder.flow


@pytest.fixture(scope="module")
def vocoder(decoder):
    return decoder.hift


def test_noise_is_the_released_one():
    before = torch.get_rng_state()
    torch.testing.assert_close(released_noise(80)[:, :, ::1500], TENSORS["rand_noise"], atol=0, rtol=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "number", "is_chunked", "has_prompt"),
    [
        ("whole", 60, False, False),
        ("chunked", 60, True, False),
        ("prompted", 40, False, True),
        ("prompted_chunked", 40, True, True),
    ],
)
@torch.inference_mode()
def test_reference_mels(flow, name, number, is_chunked, has_prompt):
    codes, prompt = TENSORS["codes"][:, :number], {}
    if has_prompt:
        codes = torch.cat([TENSORS["prompt_codes"], codes], dim=1)
        prompt = {"prompt_mel": TENSORS["prompt_mel"].transpose(1, 2), "embedding": TENSORS["embedding"]}
    noise = released_noise(80)[:, :, : 2 * codes.shape[1]]
    mel = flow.inference(codes, noise, is_chunked=is_chunked, **prompt)
    torch.testing.assert_close(mel, TENSORS[f"{name}.mel"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_reference_mel_of_a_chunk_and_the_codes_behind_it(flow):
    noise = released_noise(80)[:, :, :100]
    codes, future = TENSORS["codes"][:, :50], TENSORS["codes"][:, 50:53]
    mel = flow.inference(codes, noise, future=future, is_chunked=True)
    torch.testing.assert_close(mel, TENSORS["not_final.mel"], atol=1e-4, rtol=0)
    # and it does not change any more when more codes come
    torch.testing.assert_close(mel, TENSORS["chunked.mel"][:, :, :100], atol=1e-4, rtol=0)


def reference_noise(num_samples):
    """Draws of the reference at seed 1: start phases without effect, then noise like a transposed tensor."""
    generator = torch.Generator().manual_seed(1)
    torch.rand(1, 9, generator=generator)
    noise = torch.empty(1, 9, num_samples).transpose(1, 2).normal_(generator=generator).transpose(1, 2)
    return SourceNoise(torch.randn(1, 9, 1), noise)


@torch.inference_mode()
def test_reference_vocoder(vocoder):
    mel = TENSORS["whole.mel"][:, :, :40]
    f0 = vocoder.predict_f0(mel)
    torch.testing.assert_close(f0, TENSORS["hift.f0"], atol=5e-3, rtol=0)
    # the reference sums the phase in float32
    source = vocoder.make_source(f0, reference_noise(40 * 480))
    torch.testing.assert_close(source, TENSORS["hift.source"], atol=2e-3, rtol=0)
    wave = vocoder.synthesize(mel, TENSORS["hift.source"])
    torch.testing.assert_close(wave, TENSORS["hift.wave"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[30, 1, 29], [20, 20, 20]])
@torch.inference_mode()
def test_vocoder_stream_equals_whole(vocoder, sizes):
    mel = TENSORS["whole.mel"][:, :, :60]
    whole = vocode(vocoder, start_vocoder(vocoder, 1), mel, 60)
    assert whole.shape == (60 * 480,)
    state, first, waves = start_vocoder(vocoder, 1), 0, []
    for size in sizes:
        future = vocoder.receptive_frames + 6  # the F0 predictor looks five frames ahead, the source one
        waves.append(vocode(vocoder, state, mel[:, :, first : first + size + future], size))
        first += size
    torch.testing.assert_close(torch.cat(waves), whole, atol=2e-5, rtol=0)

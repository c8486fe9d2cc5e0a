"""The vocoder against the reference's numbers, and its behaviour in training."""

import pytest
import torch

from vita_audio.speech_decoder.config import HiFTConfig
from vita_audio.speech_decoder.hift import HiFTGenerator, SourceNoise

TINY = HiFTConfig(base_channels=16, f0_channels=8)


def _no_noise(mel: torch.Tensor) -> SourceNoise:
    return SourceNoise(torch.zeros(1, 9, 1), torch.zeros(1, 9, mel.shape[2] * 256))


@pytest.mark.parametrize("index", [0, 1])
def test_reference_numbers(decoder, golden, facts, index):
    expected = {name.split(".", 1)[1]: value for name, value in golden("hift").items() if name[0] == str(index)}
    seed, mel, hift = facts("hift")["cases"][index]["seed"], expected["mel"], decoder.hift
    f0 = hift.predict_f0(mel)
    torch.testing.assert_close(f0, expected["f0"], atol=5e-3, rtol=0)

    noise = hift.draw_noise(1, mel.shape[2], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(noise.phase, expected["phase_vec"])
    # Tolerances of the golden case: phase is summed in another precision than the reference's.
    source = hift.make_source(f0, noise)
    torch.testing.assert_close(source, expected["source"], atol=1e-3, rtol=0)
    torch.testing.assert_close(hift.synthesize(mel, expected["source"]), expected["wav"], atol=1e-5, rtol=0)
    torch.testing.assert_close(hift.synthesize(mel, source), expected["wav"], atol=2e-3, rtol=0)

    silent_source = hift.make_source(f0, _no_noise(mel))
    torch.testing.assert_close(silent_source, expected["source_zero_draws"], atol=1e-3, rtol=0)
    torch.testing.assert_close(hift.synthesize(mel, silent_source), expected["wav_zero_draws"], atol=2e-3, rtol=0)
    silent_source[:, :, :256] = expected["cache_source"]
    torch.testing.assert_close(silent_source, expected["source_partial_cache"], atol=1e-3, rtol=0)
    torch.testing.assert_close(hift.synthesize(mel, silent_source), expected["wav_partial_cache"], atol=2e-3, rtol=0)


def test_noise_equals_reference_draw(decoder, golden, facts):
    seed = facts("hift")["cases"][0]["seed"]
    noise = decoder.hift.draw_noise(1, 12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(noise.noise, golden("hift")["0.sine_noise"])


def test_released_parameter_names_and_shapes(facts):
    with torch.device("meta"):
        hift = HiFTGenerator(HiFTConfig())
    assert {name: list(value.shape) for name, value in hift.state_dict().items()} == facts("keys_hift")["keys"]


def test_forward_trains_every_weight_and_leaves_global_generator_alone():
    hift = HiFTGenerator(TINY)
    mel = torch.randn(2, 80, 9)
    before = torch.get_rng_state()
    wave, f0 = hift(mel, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    assert wave.shape == (2, 9 * 256) and f0.shape == (2, 9)
    (wave.square().mean() + f0.mean()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in hift.parameters())


def test_same_seed_same_wave_other_seed_other_wave(decoder):
    mel = torch.randn(1, 80, 6, generator=torch.Generator().manual_seed(0))
    first, again, other = (decoder.hift(mel, generator=torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_given_f0_excites_the_source(decoder):
    mel = torch.randn(1, 80, 6, generator=torch.Generator().manual_seed(0))
    voiced, unvoiced = (
        decoder.hift(mel, generator=torch.Generator().manual_seed(1), source_f0=torch.full((1, 6), hertz))
        for hertz in (200.0, 0.0)
    )
    assert not torch.allclose(voiced[0], unvoiced[0])
    torch.testing.assert_close(voiced[1], unvoiced[1])  # the prediction is not touched


def test_phase_keeps_its_precision_in_long_audio(decoder):
    """In float32 the harmonics of the second minute would be off by up to 0.05 rad."""
    f0 = torch.full((1, 4), 217.3)
    start = torch.tensor([20000.25], dtype=torch.float64)
    late = decoder.hift.make_source(f0, _no_noise(f0[None]), start)
    early = decoder.hift.make_source(f0, _no_noise(f0[None]), start % 1)
    torch.testing.assert_close(late, early, atol=1e-6, rtol=0)


def test_autocast_output_is_float32_and_close(decoder):
    mel = torch.randn(1, 80, 8, generator=torch.Generator().manual_seed(0))
    source = decoder.hift.make_source(decoder.hift.predict_f0(mel), _no_noise(mel))
    exact = decoder.hift.synthesize(mel, source)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = decoder.hift.synthesize(mel, source)
    assert coarse.dtype == torch.float32
    assert (coarse - exact).norm() < 0.1 * exact.norm()

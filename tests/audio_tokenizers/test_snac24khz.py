"""SNAC: the public order of codes, the real model at a tiny size, and pieces that equal the whole."""

import json

import pytest
import torch
from tiny_folders import LAYOUTS

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.audio_tokenizers import snac24khz as module
from vita_audio.audio_tokenizers.snac24khz import SNAC24kHzTokenizer, flatten, unflatten

LAYOUT = LAYOUTS["snac24khz"]


def as_lists(levels):
    return [level[0].tolist() for level in levels]


@pytest.mark.parametrize("example", LAYOUT["examples"])
def test_flattening_equals_the_reference(example):
    assert flatten([torch.tensor([level]) for level in example["codes"]]) == example["flat"]
    assert as_lists(unflatten(example["flat"])) == example["codes_back"]
    # ids that the public vocabulary lacks are in this one
    assert max(example["flat"]) < SNAC24kHzTokenizer.vocab_size == 7 * 4096


@pytest.mark.parametrize("example", LAYOUT["incomplete_tail_examples"])
def test_incomplete_groups_are_completed_as_in_the_reference(example):
    given = list(example["flat_in"])
    assert as_lists(unflatten(given)) == example["codes"] == as_lists(unflatten(example["flat_padded"]))
    assert given == example["flat_in"]  # the reference lengthens the caller's list


def test_codes_of_wrong_slots_become_the_nearest_as_in_the_reference():
    assert as_lists(unflatten(LAYOUT["wrong_slot_example"]["flat_in"])) == LAYOUT["wrong_slot_example"]["codes"]


@pytest.fixture(scope="module")
def tokenizer(folders):
    return get_audio_tokenizer("snac24khz", folders["snac24khz"][0])


def sound(num_samples):
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(1))


def test_sizes_are_those_of_the_released_layout(tokenizer):
    assert tokenizer.sample_rate == tokenizer.output_rate == LAYOUT["sample_rate"]
    assert tokenizer.samples_per_group == LAYOUT["samples_per_group"]
    assert tokenizer.frame_rate == LAYOUT["flat_rate_hz"]
    assert len(tokenizer.encode(sound(2048), 24_000)) == LAYOUT["flat_tokens_per_group"]


def test_codes_are_those_of_the_package(tokenizer):
    wave = sound(30_000)
    assert tokenizer.encode(wave, 24_000) == flatten(tokenizer.model.encode(wave[None, None]))


def test_wave_is_that_of_the_package_given_its_noise(tokenizer):
    levels = unflatten(tokenizer.encode(sound(20_000), 24_000))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        noises = [torch.randn(10, 4 * rate) for rate in (8, 64, 256, 512)]
        torch.manual_seed(7)
        with torch.inference_mode():
            expected = tokenizer.model.decode(levels)[0, 0]
    torch.testing.assert_close(tokenizer.synthesize(levels, noises), expected)


def test_noise_changes_the_wave_and_depends_on_the_seed_alone(folders):
    codes, before = list(range(70)), torch.get_rng_state()
    waves = [get_audio_tokenizer("snac24khz", folders["snac24khz"][0], seed=seed).decode(codes) for seed in (1, 1, 2)]
    assert torch.equal(waves[0], waves[1]) and not torch.allclose(waves[0], waves[2])
    assert torch.equal(before, torch.get_rng_state())


def test_pieces_give_the_codes_of_the_whole(tokenizer, monkeypatch):
    wave = sound(41 * 2048 + 5)
    whole = tokenizer.encode(wave, 24_000)
    monkeypatch.setattr(module, "GROUPS_PER_PIECE", 10)
    assert tokenizer.encode(wave, 24_000) == whole and len(whole) == 42 * 7


@pytest.mark.parametrize("stream_chunks", [(7, 28), (49,), (20, 1)])
def test_streams_give_the_wave_of_the_whole(folders, stream_chunks):
    tokenizer = get_audio_tokenizer("snac24khz", folders["snac24khz"][0], stream_chunks=stream_chunks)
    codes = tokenizer.encode(sound(30 * 2048), 24_000)
    stream = tokenizer.stream()
    parts = [stream.push(codes[start : start + 5]) for start in range(0, len(codes), 5)]
    wave = torch.cat([*parts, stream.flush()])
    torch.testing.assert_close(wave, tokenizer.decode(codes), atol=1e-5, rtol=0)
    first = next(number for number, part in enumerate(parts, start=1) if len(part)) * 5
    assert first <= stream_chunks[0] + 6 + tokenizer.context_groups * 7 + 4


def test_less_context_changes_the_wave(tokenizer, monkeypatch):
    """The bound on the context of a sample is tight to within two groups."""
    codes = tokenizer.encode(sound(30 * 2048), 24_000)
    whole = tokenizer.decode(codes)
    monkeypatch.setattr(tokenizer, "context_groups", tokenizer.context_groups - 2)
    stream = tokenizer.stream()
    assert not torch.allclose(torch.cat([stream.push(codes), stream.flush()]), whole, atol=1e-5)


def test_other_models_and_folders_are_refused(folders, tmp_path):
    pytest.importorskip("snac", reason="needs the package snac: pip install 'vita-audio[snac24khz]'")
    from snac import SNAC

    with pytest.raises(ValueError, match=r"got \{'vq_strides': \[8, 4, 2, 1\]"):
        SNAC24kHzTokenizer(SNAC(encoder_dim=2, encoder_rates=[2], decoder_dim=4, decoder_rates=[2]))
    with pytest.raises(ValueError, match="give the folder of hubertsiuzdak/snac_24khz as path"):
        get_audio_tokenizer("snac24khz")
    (tmp_path / "config.json").write_text(json.dumps({"sampling_rate": 24_000}))
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin is missing"):
        get_audio_tokenizer("snac24khz", tmp_path)

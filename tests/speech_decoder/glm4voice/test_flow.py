"""The flow against the reference's numbers, its padding rules and its training loss."""

import dataclasses

import pytest
import torch

from vita_audio.speech_decoder.config import EncoderConfig, EstimatorConfig, FlowConfig, FlowMatchingConfig
from vita_audio.speech_decoder.flow_matching import ConditionalCFM
from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.layers import block_causal_mask, length_mask, resample_nearest
from vita_audio.speech_decoder.unet import ConditionalDecoder

TINY = FlowConfig(
    input_size=16,
    vocab_size=20,
    encoder=EncoderConfig(input_size=16, output_size=16, attention_heads=2, linear_units=32, num_blocks=1),
    estimator=EstimatorConfig(channels=(16, 16), attention_head_dim=8, n_blocks=1, num_mid_blocks=1, num_heads=2),
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch() -> dict[str, torch.Tensor]:
    """Three utterances of 12, 7 and 3 codes, padded."""
    return {
        "codes": torch.randint(0, 20, (3, 12), generator=_generator(1)),
        "code_lengths": torch.tensor([12, 7, 3]),
        "mel": torch.randn(3, 82, 80, generator=_generator(2)),
        "mel_lengths": torch.tensor([82, 48, 21]),
    }


@pytest.mark.parametrize("index", range(15))
def test_reference_mels(decoder, golden, facts, index):
    """Whole, with a prompt, with a speaker; one, four and ten steps."""
    case, tensors = facts("flow")["cases"][index], golden("flow") | golden("flow_more")
    assert case["index"] == index
    names, prompt_mel = [f"{index}.prompt_token", f"{index}.token"], tensors.get(f"{index}.prompt_feat")
    mel = decoder.flow.inference(
        torch.cat([tensors[name].long() for name in names if name in tensors], dim=1),
        tensors[f"{case['z_from_case']}.z"],
        num_steps=case["option_steps"],
        prompt_mel=None if prompt_mel is None else prompt_mel.transpose(1, 2),
        embedding=tensors.get(f"{index}.embedding"),
    )
    torch.testing.assert_close(mel, tensors[f"{index}.mel"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("index", [0, 2, 3, 4, 11, 13])
def test_reference_encoder_prior_and_speaker(decoder, golden, index):
    tensors, flow = golden("flow") | golden("flow_more"), decoder.flow
    codes = tensors[f"{index}.token"].long()
    if f"{index}.prompt_token" in tensors:
        codes = torch.cat([tensors[f"{index}.prompt_token"].long(), codes], dim=1)
    encoded = flow.encoder(flow.input_embedding(codes))
    torch.testing.assert_close(encoded, tensors[f"{index}.encoder_out"], atol=2e-5, rtol=0)
    num_frames = tensors[f"{index}.mu"].shape[1]
    assert num_frames == flow.num_frames(codes.shape[1])
    mu = flow.encode(codes, torch.tensor([codes.shape[1]]), torch.tensor([num_frames]))
    torch.testing.assert_close(mu.transpose(1, 2), tensors[f"{index}.mu"], atol=2e-5, rtol=0)
    torch.testing.assert_close(flow.speaker(tensors.get(f"{index}.embedding")), tensors[f"{index}.spk"])


def test_reference_estimator(decoder, golden):
    """The reference lets padded positions into attention and normalisation of a batch; here they are left out.

    So only the full rows agree with it, and the padded row agrees with itself alone.
    """
    tensors, estimator = golden("flow"), decoder.flow.decoder.estimator
    x, mu, t, spks, cond = (tensors[f"est.{name}"] for name in ("x", "mu", "t", "spks", "cond"))
    out = estimator(x, None, mu, t, spks, cond)
    torch.testing.assert_close(out, tensors["est.out_full"], atol=1e-4, rtol=1e-4)

    mask = tensors["est.mask"].bool()
    masked = estimator(x, mask, mu, t, spks, cond)
    length = int(mask[1].sum())
    assert length < x.shape[2] and bool(mask[0].all())
    torch.testing.assert_close(masked[:1], tensors["est.out_masked"][:1], atol=1e-4, rtol=1e-4)
    alone = estimator(x[1:, :, :length], None, mu[1:, :, :length], t[1:], spks[1:], cond[1:, :, :length])
    torch.testing.assert_close(masked[1:, :, :length], alone, atol=1e-4, rtol=1e-4)
    assert (masked[1, :, length:] == 0).all()


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_reference_time_schedule(decoder, golden, steps):
    times = decoder.flow.decoder.schedule(torch.linspace(0, 1, steps + 1))
    torch.testing.assert_close(times, golden("flow")[f"t_span.{steps}"])


def test_released_parameter_names_and_shapes(facts):
    with torch.device("meta"):
        flow = MaskedDiffWithXvec(FlowConfig())
    assert {name: list(value.shape) for name, value in flow.state_dict().items()} == facts("keys_flow")["keys"]


def test_frame_counts(decoder, facts):
    frames = facts("frame_counts")["frames"]
    assert [decoder.flow.num_frames(n) for n in range(len(frames))] == frames


def test_padded_batch_equals_single_runs():
    flow, batch = MaskedDiffWithXvec(TINY).eval(), _batch()
    together = flow.encode(batch["codes"], batch["code_lengths"], batch["mel_lengths"])
    for row, (num_codes, num_frames) in enumerate(zip(batch["code_lengths"], batch["mel_lengths"], strict=True)):
        alone = flow.encode(batch["codes"][row : row + 1, :num_codes], num_codes[None], num_frames[None])
        torch.testing.assert_close(together[row, :, :num_frames], alone[0], atol=1e-5, rtol=1e-5)
        assert (together[row, :, num_frames:] == 0).all()


def test_loss_ignores_padding():
    flow, batch = MaskedDiffWithXvec(TINY).eval(), _batch()
    losses = flow.loss(**batch, generator=_generator())
    longer = dict(batch)
    longer["codes"] = torch.cat([batch["codes"], torch.full((3, 5), 19)], dim=1)
    longer["codes"][1, 7:] = 3
    longer["mel"] = torch.cat([batch["mel"], torch.full((3, 9, 80), 1e3)], dim=1)
    longer["mel"][2, 21:] = -1e3
    for name, loss in flow.loss(**longer, generator=_generator()).items():
        torch.testing.assert_close(loss, losses[name])


def test_losses_equal_their_definition():
    """With an estimator that answers zero, the loss is the mean square of mel minus (scaled) noise."""
    flow, batch = MaskedDiffWithXvec(TINY).eval(), _batch()
    torch.nn.init.zeros_(flow.decoder.estimator.final_proj.weight)
    torch.nn.init.zeros_(flow.decoder.estimator.final_proj.bias)
    losses = flow.loss(**batch, generator=_generator())
    replay = _generator()
    torch.rand(2, 3, generator=replay)  # prompts
    torch.rand(3, generator=replay)  # times
    noise = torch.randn(3, 80, 82, generator=replay).transpose(1, 2)
    errors = [
        (mel[:n] - (1 - 1e-6) * z[:n]).square().flatten()
        for mel, z, n in zip(batch["mel"], noise, batch["mel_lengths"], strict=True)
    ]
    torch.testing.assert_close(losses["flow_loss"], torch.cat(errors).mean())
    mu = flow.encode(batch["codes"], batch["code_lengths"], batch["mel_lengths"]).transpose(1, 2)
    distances = [
        (m[:n] - mel[:n]).abs().flatten() for m, mel, n in zip(mu, batch["mel"], batch["mel_lengths"], strict=True)
    ]
    torch.testing.assert_close(losses["prior_loss"], torch.cat(distances).mean())
    torch.testing.assert_close(flow.prior_loss(**batch), losses["prior_loss"])


def test_perfect_velocity_leads_from_noise_to_mel():
    """The loss's path and the solver agree: a velocity that points at the mel arrives there."""
    matching = ConditionalCFM(FlowMatchingConfig(inference_cfg_rate=0.0), ConditionalDecoder(TINY.estimator))
    mel, noise = torch.randn(2, 1, 80, 10, generator=_generator())
    matching.estimator.forward = lambda x, mask, mu, t, spks, cond: mel - (1 - 1e-6) * noise
    arrived = matching.solve(noise, mel, torch.zeros(1, 80), mel, num_steps=7)
    torch.testing.assert_close(arrived, mel, atol=1e-5, rtol=0)


def test_temperature_scales_the_first_noise():
    configs = [FlowMatchingConfig(inference_temperature=temperature) for temperature in (1.0, 0.5)]
    whole, half = (ConditionalCFM(config, ConditionalDecoder(TINY.estimator)) for config in configs)
    half.load_state_dict(whole.state_dict())
    noise, mu, cond = torch.randn(3, 1, 80, 10, generator=_generator())
    cooler = half.solve(noise, mu, torch.zeros(1, 80), cond, num_steps=2)
    torch.testing.assert_close(cooler, whole.solve(noise / 2, mu, torch.zeros(1, 80), cond, num_steps=2))
    assert not torch.allclose(cooler, whole.solve(noise, mu, torch.zeros(1, 80), cond, num_steps=2))


@pytest.mark.parametrize(("rate", "is_dropped"), [(0.0, False), (1 - 1e-9, True)])
def test_training_drops_all_conditions_together(rate, is_dropped):
    matching = ConditionalCFM(FlowMatchingConfig(training_cfg_rate=rate), ConditionalDecoder(TINY.estimator))
    mel, mu, cond = torch.randn(3, 2, 80, 10, generator=_generator())
    spks = torch.randn(2, 80, generator=_generator())
    losses = [
        matching.loss(mel, None, mu * factor, spks * factor, cond * factor, generator=_generator())
        for factor in (1.0, 5.0)
    ]
    assert torch.equal(losses[0], losses[1]) == is_dropped


def test_training_lowers_both_losses_and_reaches_every_weight():
    torch.manual_seed(0)
    flow, batch = MaskedDiffWithXvec(TINY), _batch()
    optimizer, generator = torch.optim.Adam(flow.parameters(), lr=3e-3), _generator()
    history = []
    for _ in range(25):
        losses = flow.loss(**batch, generator=generator, embedding=torch.ones(3, 192))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([loss.item() for loss in losses.values()])
    assert [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.any()] == []
    first, last = torch.tensor(history[:5]).mean(0), torch.tensor(history[-5:]).mean(0)
    assert (last < 0.95 * first).all()


def test_autocast_loss_is_close_and_float32():
    flow, batch = MaskedDiffWithXvec(TINY).eval(), _batch()
    exact = flow.loss(**batch, generator=_generator())
    with torch.autocast("cpu", torch.bfloat16):
        coarse = flow.loss(**batch, generator=_generator())
    for name in exact:
        assert coarse[name].dtype == torch.float32
        torch.testing.assert_close(coarse[name], exact[name], rtol=2e-2, atol=0)


def test_dropout_only_in_training():
    flow, batch = MaskedDiffWithXvec(TINY), _batch()
    lengths = (batch["codes"], batch["code_lengths"], batch["mel_lengths"])
    flow.train()
    assert not torch.equal(flow.encode(*lengths), flow.encode(*lengths))
    flow.eval()
    assert torch.equal(flow.encode(*lengths), flow.encode(*lengths))


def test_block_causal_mask():
    visible = block_causal_mask(5, 2).int().tolist()
    assert visible == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_encoder_of_whole_blocks_does_not_see_the_future(decoder):
    codes = torch.randint(0, 256, (1, 40), generator=_generator())
    x = decoder.flow.input_embedding(codes)
    torch.testing.assert_close(decoder.flow.encoder(x[:, :20]), decoder.flow.encoder(x)[:, :20], atol=1e-5, rtol=0)


def test_resampling_each_row_equals_interpolate():
    x = torch.randn(2, 9, 4, generator=_generator())
    lengths, new_lengths = torch.tensor([9, 5]), torch.tensor([62, 34])
    stretched = resample_nearest(x, lengths, new_lengths, 62)
    for row in range(2):
        expected = torch.nn.functional.interpolate(x[row : row + 1, : lengths[row]].mT, int(new_lengths[row])).mT
        torch.testing.assert_close(stretched[row : row + 1, : new_lengths[row]], expected)


def test_full_rows_need_no_mask():
    assert length_mask(torch.tensor([4, 4]), 4) is None
    assert length_mask(torch.tensor([4, 2]), 4).tolist() == [[[True] * 4], [[True, True, False, False]]]


def test_wrong_requests_are_refused(decoder):
    codes = torch.zeros(1, 10, dtype=torch.long)
    with pytest.raises(ValueError, match="10 codes need noise for 68 frames, got 70"):
        decoder.flow.inference(codes, torch.zeros(1, 80, 70))
    with pytest.raises(ValueError, match="prompt mel must be shorter than all 68 frames, got 68"):
        decoder.flow.inference(codes, torch.zeros(1, 80, 68), prompt_mel=torch.zeros(1, 80, 68))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        decoder.flow.inference(codes, torch.zeros(1, 80, 68), num_steps=0)
    with pytest.raises(ValueError, match="t_scheduler must be cosine or linear, got 'sine'"):
        dataclasses.replace(TINY.cfm, t_scheduler="sine")

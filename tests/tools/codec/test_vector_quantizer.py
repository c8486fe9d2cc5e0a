"""Codebook training: it finds clusters, ignores padding, revives dead codes and keeps to float32."""

import pytest
import torch
from torch import nn

from tools.codec import vector_quantizer
from tools.codec.vector_quantizer import VectorQuantizer, kmeans
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder

WIDTH, NUM_CODES = 6, 8


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return make_quantizer()


def make_quantizer(restart_interval=None):
    config = WhisperVQConfig(encoder_layers=16, quantize_restart_interval=restart_interval)
    return VectorQuantizer(nn.Embedding(NUM_CODES, WIDTH), config)


def clustered_vectors(count=400, spread=0.01):
    """Vectors around NUM_CODES far apart centres, and the centres."""
    generator = torch.Generator().manual_seed(1)
    centres = 10 * torch.randn(NUM_CODES, WIDTH, generator=generator)
    noise = spread * torch.randn(count, WIDTH, generator=generator)
    return centres[torch.arange(count) % NUM_CODES] + noise, centres


def test_kmeans_returns_means_and_sizes_of_its_clusters():
    torch.manual_seed(0)
    vectors, _ = clustered_vectors()
    centres, sizes = kmeans(vectors, NUM_CODES, num_iterations=30)
    assert sizes.sum() == len(vectors)
    nearest = torch.cdist(vectors, centres).argmin(-1)
    for code in nearest.unique():
        torch.testing.assert_close(centres[code], vectors[nearest == code].mean(0), atol=1e-4, rtol=1e-4)


def test_vectors_pass_unchanged_before_initialisation(quantizer):
    hidden = torch.randn(2, 5, WIDTH)
    before = quantizer.codebook.weight.clone()
    output = quantizer(hidden)
    torch.testing.assert_close(output.quantized, hidden)
    assert output.ids is None and output.commitment_loss == 0
    torch.testing.assert_close(quantizer.codebook.weight, before)


def test_too_few_vectors_for_kmeans_are_refused(quantizer):
    with pytest.raises(ValueError, match="at least 8 vectors, got 7"):
        quantizer.initialize(torch.randn(NUM_CODES - 1, WIDTH))


def test_vectors_that_are_not_finite_are_refused_for_that(quantizer):
    vectors = torch.randn(3 * NUM_CODES, WIDTH)
    vectors[[2, 5]] = torch.nan
    with pytest.raises(ValueError, match="finite vectors, 2 of 24 are not"):
        quantizer.initialize(vectors)


def test_kmeans_is_the_same_in_parts(monkeypatch):
    results = []
    for size in (1000, 7):
        monkeypatch.setattr(vector_quantizer, "VECTORS_AT_A_TIME", size)
        torch.manual_seed(0)
        results.append(kmeans(clustered_vectors()[0], NUM_CODES))
    torch.testing.assert_close(*results)


def test_codes_follow_their_vectors(quantizer):
    vectors, _ = clustered_vectors()
    quantizer.initialize(vectors)
    moved = vectors + 0.5
    for _ in range(600):
        output = quantizer(moved)
    for code in output.ids.unique():
        mean = moved[output.ids == code].mean(0)
        torch.testing.assert_close(quantizer.codebook.weight[code], mean, atol=2e-2, rtol=0)


def test_one_update_is_the_moving_average(quantizer):
    vectors, _ = clustered_vectors(80)
    quantizer.initialize(vectors)
    sizes, sums = quantizer.cluster_sizes.clone(), quantizer.cluster_sums.clone()
    ids = quantizer(vectors).ids
    one_hot = nn.functional.one_hot(ids, NUM_CODES).float()
    sizes = 0.99 * sizes + 0.01 * one_hot.sum(0)
    sums = 0.99 * sums + 0.01 * one_hot.T @ vectors
    used = sizes > 1e-3
    torch.testing.assert_close(quantizer.codebook.weight[used], (sums / sizes[:, None])[used])


def test_padding_does_not_count(quantizer):
    vectors, _ = clustered_vectors(64)
    quantizer.initialize(vectors)
    other = make_quantizer()
    other.load_state_dict(quantizer.state_dict())
    padded = torch.cat([vectors, torch.full((16, WIDTH), 1e3)])
    output, expected = quantizer(padded, torch.arange(80) < 64), other(vectors)
    torch.testing.assert_close(output.commitment_loss, expected.commitment_loss)
    torch.testing.assert_close(quantizer.state_dict(), other.state_dict())


def test_batch_of_padding_only_gives_zero_loss(quantizer):
    quantizer.initialize(clustered_vectors()[0])
    output = quantizer(torch.randn(1, 3, WIDTH), torch.zeros(1, 3, dtype=torch.bool))
    assert output.commitment_loss == 0
    assert quantizer.codebook.weight.isfinite().all()


def test_gradient_goes_straight_through_and_commits(quantizer):
    quantizer.initialize(clustered_vectors()[0])
    hidden = torch.randn(3, WIDTH, requires_grad=True)
    output = quantizer.eval()(hidden)
    codewords = quantizer.codebook.weight[output.ids]
    torch.testing.assert_close(output.quantized, codewords)
    weights = torch.randn(3, WIDTH)
    (straight,) = torch.autograd.grad((output.quantized * weights).sum(), hidden, retain_graph=True)
    torch.testing.assert_close(straight, weights)
    (commitment,) = torch.autograd.grad(output.commitment_loss, hidden)
    torch.testing.assert_close(commitment, 0.25 * 2 * (hidden - codewords).detach() / hidden.numel())
    assert quantizer.codebook.weight.grad is None


def test_evaluation_mode_changes_nothing(quantizer):
    vectors, _ = clustered_vectors()
    quantizer.initialize(vectors)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(vectors + 1)
    torch.testing.assert_close(quantizer.state_dict(), before)


def test_dead_codes_restart_at_vectors_of_the_batch():
    torch.manual_seed(0)
    quantizer = make_quantizer(restart_interval=5)
    vectors, _ = clustered_vectors()
    quantizer.initialize(torch.cat([vectors[:NUM_CODES] * 100, vectors * 100]))
    live = vectors[vectors.norm(dim=-1).argsort()[:40]]
    for _ in range(5):
        output = quantizer(live)
    dead = torch.ones(NUM_CODES, dtype=torch.bool).index_fill_(0, output.ids.unique(), False)
    assert dead.any()
    distance = torch.cdist(quantizer.codebook.weight[dead], live).amin(-1)
    torch.testing.assert_close(distance, torch.zeros_like(distance), atol=1e-2, rtol=0)
    assert quantizer.recent_uses.sum() == 0


def test_perplexity_counts_codes_in_equal_use(quantizer):
    quantizer.cluster_sizes.zero_()[:5] = 3.0
    assert quantizer.perplexity() == pytest.approx(5, rel=1e-4)


def test_bf16_autocast_quantises_in_float32(quantizer):
    vectors, _ = clustered_vectors()
    quantizer.initialize(vectors)
    expected = quantizer.eval()(vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(vectors)
    assert output.quantized.dtype == torch.float32
    torch.testing.assert_close(output.ids, expected.ids)
    torch.testing.assert_close(output.commitment_loss, expected.commitment_loss)


def test_statistics_travel_with_the_encoder():
    config = WhisperVQConfig(
        d_model=8,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=8,
        num_mel_bins=4,
        max_source_positions=16,
        pooling_position=1,
        quantize_position=1,
        quantize_vocab_size=4,
        quantize_ema_decay=0.9,
    )
    encoder = WhisperVQEncoder(config)
    quantizer = VectorQuantizer(encoder.codebook, config)
    quantizer.initialize(torch.randn(40, 8))
    before = quantizer.cluster_sizes.clone()
    ids = quantizer(torch.randn(20, 8)).ids
    quantizer.export_statistics(encoder)
    torch.testing.assert_close(encoder.ema_count, 0.9 * before + 0.1 * torch.bincount(ids, minlength=4))
    torch.testing.assert_close(encoder.ema_weight / encoder.ema_count[:, None], encoder.codebook.weight)

"""Batches of packs, and that a model sees each document alone."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vita_audio.constants import IGNORE_INDEX
from vita_audio.data.collator import PackCollator

PAD = 99


def pack(lengths, seed=0, **extra):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, PAD, size=sum(lengths), dtype=np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return {"input_ids": ids, "labels": ids.copy(), "position_ids": positions, **extra}


def test_batch_has_no_attention_mask_and_padding_is_its_own_document():
    first, second = pack([3, 4]), pack([2], seed=1)
    batch = PackCollator(PAD)([first, second])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert all(values.dtype == torch.int64 and values.shape == (2, 7) for values in batch.values())
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4]]
    assert batch["input_ids"][0].tolist() == first["input_ids"].tolist()
    assert batch["input_ids"][1].tolist() == [*second["input_ids"].tolist(), *[PAD] * 5]
    assert batch["labels"][1, 2:].tolist() == [IGNORE_INDEX] * 5


def test_loss_weights_are_padded_with_zero():
    packs = [pack([3], loss_weights=np.full(3, 0.5, np.float32)), pack([1], loss_weights=np.ones(1, np.float32))]
    weights = PackCollator(PAD)(packs)["loss_weights"]
    assert weights.dtype == torch.float32 and weights.tolist() == [[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]]


def test_lists_and_arrays_give_the_same_batch():
    arrays = pack([3, 4])
    lists = {name: values.tolist() for name, values in arrays.items()}
    torch.testing.assert_close(PackCollator(PAD)([arrays]), PackCollator(PAD)([lists]))


def test_attention_mask_is_refused():
    with pytest.raises(ValueError, match="packs must not have an attention_mask"):
        PackCollator(PAD)([pack([3], attention_mask=np.ones(3))])


@pytest.fixture(params=["eager", "sdpa"])
def model(request):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=request.param,
    )
    return Qwen2ForCausalLM(config).eval()


def test_samples_are_named_by_file_and_line():
    packs = [pack([1, 2], sources=[1, 0], lines=[3, 14]), pack([5], sources=[1], lines=[7])]
    assert PackCollator(PAD, files=["a.jsonl", "b.jsonl"])(packs)["samples"] == ["b.jsonl:3", "a.jsonl:14", "b.jsonl:7"]
    assert "samples" not in PackCollator(PAD)(packs)


@torch.no_grad()
def test_packed_logits_equal_separate_logits(model):
    packs = [pack([1, 5, 2, 7]), pack([4, 1], seed=1)]
    batch = PackCollator(PAD)(packs)
    del batch["labels"]
    packed = model(**batch, use_cache=False).logits
    for row, values in enumerate(packs):
        starts = [*np.flatnonzero(values["position_ids"] == 0), len(values["input_ids"])]
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            ids = torch.tensor(values["input_ids"][None, start:stop], dtype=torch.int64)
            alone = model(input_ids=ids, use_cache=False).logits
            # float32 rounding: the same sums in another order
            torch.testing.assert_close(packed[row : row + 1, start:stop], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_mask_would_let_documents_see_each_other(model):
    batch = PackCollator(PAD)([pack([5, 7])])
    del batch["labels"]
    without = model(**batch, use_cache=False).logits
    masked = model(**batch, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=False).logits
    assert (masked - without)[:, 5:].abs().max() > 1e-3

"""What a phone recogniser tells the training of a flow."""

import random

import pytest
import torch

from tools.codec.code_mel_pairs import SILENCE
from tools.codec.heads import count_errors, ctc_loss
from tools.codec.phone_reader import MEL_CENTRE, PhoneReader, phone_losses, roughen

NUM_BANDS = 80


def mels_of(symbols: list[list[int]], frames: int = 12) -> torch.Tensor:
    """Each symbol is a range of bands for some frames, after which comes silence; (batch, bands, frames)."""
    mel = torch.full((len(symbols), NUM_BANDS, frames * max(map(len, symbols))), SILENCE)
    for row, ids in enumerate(symbols):
        for place, symbol in enumerate(ids):
            mel[row, 10 * symbol : 10 * symbol + 10, frames * place + 2 : frames * (place + 1)] = 0.0
    return mel


@pytest.fixture(scope="module")
def reader() -> PhoneReader:
    """Trained on four phones, in any order."""
    torch.manual_seed(0)
    reader, rng = PhoneReader("abcd", width=32, num_blocks=2), random.Random(0)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    for _ in range(150):
        symbols = [[rng.randint(1, 4) for _ in range(5)] for _ in range(8)]
        loss = ctc_loss(reader(mels_of(symbols))[1], torch.full((8,), 30), symbols)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return reader.eval().requires_grad_(False)


def test_it_learns_to_read(reader):
    symbols = [[1, 2, 3, 4, 2], [4, 4, 1, 3, 1]]
    logits = reader(mels_of(symbols))[1]
    assert count_errors(logits, torch.tensor([30, 30]), symbols) == [0, 0]


def test_another_phone_costs_more_than_a_change_of_the_same_size_that_is_none(reader):
    mel, symbols = mels_of([[1, 2, 3, 4, 2]]), ["abcdb"]
    other = mels_of([[1, 2, 3, 4, 1]])
    change = (other - mel).abs().sum()
    weaker = mel - (mel > MEL_CENTRE) * change / (mel > MEL_CENTRE).sum()  # as much, spread over all phones
    mask = torch.ones(1, 1, mel.shape[2], dtype=torch.bool)
    same, wrong, spread = (phone_losses(reader, made, mel, mask, symbols) for made in (mel, other, weaker))
    assert same["phone_features"] == 0
    assert wrong["phone_ctc"] > 5 * spread["phone_ctc"] > 0


def test_what_is_padded_does_not_count(reader):
    mel, symbols = mels_of([[1, 2, 3], [4, 2]]), ["abc", "dbx"]  # x is no phone of the reader
    lengths = torch.tensor([36, 24])
    mask = (torch.arange(mel.shape[2]) < lengths[:, None])[:, None]
    made = (mel + 0.3).requires_grad_()
    losses = phone_losses(reader, made, mel, mask, symbols)
    sum(losses.values()).backward()
    assert not made.grad[1, :, 24:].any() and made.grad[1, :, :24].any()
    changed = made.detach().where(mask, 7.0), mel.where(mask, -3.0)
    assert phone_losses(reader, *changed, mask, symbols) == {
        name: pytest.approx(x.item()) for name, x in losses.items()
    }


def test_a_mel_is_roughened_without_a_change_of_its_shape():
    mel = mels_of([[1, 2]])
    rough = roughen(mel, random.Random(0))
    assert rough.shape == mel.shape and not torch.equal(rough, mel)

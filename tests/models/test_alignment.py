"""The contrastive loss between audio and text embeddings: its numbers, and what it does to a model."""

import pytest
import torch
from torch.nn import functional as F
from toy_models import make_model

from vita_audio.models.alignment import TEMPERATURE, alignment_loss

CODES = range(50, 100)
# Two rows: documents with both kinds, a document of text only, one of both kinds, and padding.
IDS = torch.tensor([[1, 2, 50, 51, 52, 3, 4, 5, 60, 61], [6, 7, 70, 8, 71, 9, 9, 0, 0, 0]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]])
TEXTS = [[1, 2], [5], [6, 7, 8]]
AUDIOS = [[50, 51, 52], [60, 61], [70, 71]]


def expected_loss(table):
    text, audio = (torch.stack([table[ids].mean(0) for ids in groups]) for groups in (TEXTS, AUDIOS))
    similarities = F.cosine_similarity(text[:, None], audio[None], dim=-1) / TEMPERATURE
    rows, columns = similarities.log_softmax(1).diagonal(), similarities.log_softmax(0).diagonal()
    return -(rows.mean() + columns.mean()) / 2


def test_numbers_are_those_of_the_definition():
    table = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alignment_loss(table[IDS], IDS, POSITIONS, CODES), expected_loss(table))


def test_one_document_has_nothing_to_be_told_from():
    embeds = torch.randn(1, 5, 16).requires_grad_()
    loss = alignment_loss(embeds, IDS[:1, :5], None, CODES)
    loss.backward()
    assert loss == 0 and not embeds.grad.any()


@pytest.mark.parametrize("num_items", [None, 40])
def test_a_model_adds_it_with_its_weight(num_items):
    model = make_model(2).train()
    arguments = {"input_ids": IDS, "labels": IDS, "position_ids": POSITIONS, "num_items_in_batch": num_items}
    without = model(**arguments, code_ids=CODES)
    model.config.alignment_weight = 0.5
    output = model(**arguments, code_ids=CODES)
    expected = expected_loss(model.model.embed_tokens.weight)
    share = 1 if num_items is None else output.num_targets[0] / num_items
    torch.testing.assert_close(output.alignment, expected.detach())
    torch.testing.assert_close(output.loss, without.loss + 0.5 * share * expected)
    assert without.alignment is None


def test_training_aligns_the_pairs():
    model = make_model(0).train()
    model.config.alignment_weight = 10.0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        output = model(input_ids=IDS, labels=IDS, position_ids=POSITIONS, code_ids=CODES)
        losses.append(output.alignment.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4

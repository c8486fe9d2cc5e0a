"""The part of the training loss in which modules learn what the backbone predicts: its numbers and its gradients."""

from math import log

import pytest
import torch
from toy_models import make_model, make_plus_model

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models import head_loss
from vita_audio.models.mtp_loss import MTPLoss
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable

WEIGHT = 0.7
NUM_MODULES = 3


def with_kl(weight=WEIGHT, frozen=False, make=make_model):
    model = make(NUM_MODULES).train()
    model.config.mtp_kl_weight = weight
    set_trainable(model, mtp_parameter_patterns(model.config) if frozen else ["*"])
    return model


def divergence(p, q):
    """KL(p || q) by its definition, of two rows of logits."""
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return sum(p[token] * (p[token] / q[token]).log() for token in range(len(p)))


@torch.no_grad()
def divergences_one_by_one(model, ids, labels, position_ids):
    """List what every target of every module diverges by."""
    hidden = model.model(input_ids=ids, position_ids=position_ids, use_cache=False).last_hidden_state
    backbone = model.lm_head(hidden)
    found = []
    for module, states in enumerate(model.mtp_chain(model.model.embed_tokens(ids), hidden, position_ids)):
        logits = model.lm_head(states)
        found.append(
            [
                divergence(backbone[row, place + module + 1], logits[row, place])
                for row in range(ids.shape[0])
                for place in range(ids.shape[1] - module - 2)
                if labels[row, place + module + 2] != IGNORE_INDEX
                and position_ids[row, place + module + 2] == position_ids[row, place] + module + 2
            ]
        )
    return found


@pytest.mark.parametrize("num_items", [None, 9])
def test_numbers_are_those_of_the_definition(ids, num_items):
    model = with_kl()
    labels = ids.clone()
    labels[0, 3:7] = IGNORE_INDEX
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    arguments = {"input_ids": ids, "labels": labels, "position_ids": positions, "num_items_in_batch": num_items}
    output = model(**arguments)
    rows = divergences_one_by_one(model, ids, labels, positions)
    assert [len(row) for row in rows] == output.num_targets[1:].tolist()
    expected = torch.stack([sum(row) / (num_items or len(row)) for row in rows])
    torch.testing.assert_close(output.mtp_kl.double(), expected, rtol=1e-5, atol=0)
    model.config.mtp_kl_weight = 0.0
    without = model(**arguments)
    assert without.mtp_kl is None
    torch.testing.assert_close(output.loss, without.loss + WEIGHT * output.mtp_kl.mean())
    torch.testing.assert_close(output.mtp_losses, without.mtp_losses)


def test_a_known_case():
    """Two tokens: the teacher sure by odds of 3 to 1, the module undecided."""
    head = torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        head.weight[:] = torch.tensor([[1.0], [0.0]])
    backbone = torch.tensor([0.0, log(3), 0.0]).view(1, 3, 1)  # place 1 teaches place 0 of the module
    states, labels = [backbone, torch.zeros(1, 3, 1)], torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 0]])
    output = MTPLoss()(states, labels, torch.arange(3)[None], head=head, kl_weight=1.0)
    assert output["mtp_kl"].item() == pytest.approx(0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5), rel=1e-6)


def test_packed_equals_separate(ids):
    model = with_kl()
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    borders = [(0, 0, 5), (0, 5, 8), (0, 8, 9), (0, 9, 12), (1, 0, 1), (1, 1, 12)]
    packed = model(input_ids=ids, labels=ids, position_ids=positions)
    alone = [
        model(input_ids=ids[row : row + 1, start:end], labels=ids[row : row + 1, start:end])
        for row, start, end in borders
    ]
    sums = sum(one.mtp_kl * one.num_targets[1:] for one in alone)
    torch.testing.assert_close(packed.mtp_kl, sums / packed.num_targets[1:])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_of_zero_is_the_loss_without(ids, frozen):
    model, plain = with_kl(0.0, frozen), make_model(NUM_MODULES).train()
    set_trainable(plain, mtp_parameter_patterns(plain.config) if frozen else ["*"])
    outputs = [each(input_ids=ids, labels=ids) for each in (plain, model)]
    for output in outputs:
        output.loss.backward()
    assert outputs[0].loss.item() == outputs[1].loss.item() and outputs[1].mtp_kl is None
    for expected, actual in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_backbone_teaches_and_is_not_taught(ids, frozen):
    """Gradients are those of the modules' predictions alone; what the backbone predicts is a constant."""
    model = with_kl(frozen=frozen)
    model.config.mtp_loss_weight = 0.0
    output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    actual = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    other = with_kl(0.0, frozen)
    other.config.mtp_loss_weight = 0.0
    embeds, positions = other.model.embed_tokens(ids), torch.arange(12)[None]
    hidden = other.model(inputs_embeds=embeds).last_hidden_state
    if frozen:
        embeds, hidden = embeds.detach(), hidden.detach()
    backbone = other.lm_head(hidden).detach().softmax(-1)
    loss = other(input_ids=ids, labels=ids).loss  # of the backbone, if it trains
    for module, states in enumerate(other.mtp_chain(embeds, hidden, positions)):
        p, log_q = backbone[:, module + 1 : -1], other.lm_head(states[:, : -module - 2]).log_softmax(-1)
        loss = loss + WEIGHT / NUM_MODULES * (p * (p.log() - log_q)).sum(-1).mean()
    loss.backward()
    torch.testing.assert_close(output.loss, loss)
    expected = [parameter.grad for parameter in other.parameters() if parameter.requires_grad]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_learning_from_the_backbone_brings_modules_closer_to_it(ids):
    model = with_kl(frozen=True)
    model.config.mtp_loss_weight = 0.0
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    divergences = []
    for _ in range(8):
        output = model(input_ids=ids, labels=ids)
        divergences.append(output.mtp_kl.mean().item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert all(later < earlier for earlier, later in zip(divergences, divergences[1:], strict=False))
    assert divergences[-1] < divergences[0] / 2


def test_a_module_that_predicts_as_the_backbone_has_none(ids):
    model = make_model(0)
    backbone = model.model(input_ids=ids).last_hidden_state
    states, positions = [backbone, backbone.roll(-1, dims=1)], torch.arange(ids.shape[1])[None]
    output = MTPLoss()(states, ids, positions, head=model.lm_head, kl_weight=1.0)
    assert output["mtp_kl"].abs() < 1e-4 * output["mtp_losses"] and output["num_targets"][1] == ids.numel() - 4


@pytest.mark.parametrize("frozen", [False, True])
def test_in_chunks_equals_the_plain_one(ids, monkeypatch, frozen):
    def gradients():
        model = with_kl(frozen=frozen)
        output = model(input_ids=ids, labels=ids, loss_weights=torch.linspace(0, 1, 24).view(2, 12))
        output.loss.backward()
        return output.mtp_kl, [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    plain = gradients()
    monkeypatch.setattr(head_loss, "MIN_CHUNK_LOGITS", 101)  # 8 rows in a chunk
    torch.testing.assert_close(gradients(), plain)


def test_weights_of_targets_count(ids):
    model = with_kl()
    labels, weights = ids.clone(), torch.ones_like(ids, dtype=torch.float32)
    labels[:, :6], weights[:, :6] = IGNORE_INDEX, 0.0
    weighted = model(input_ids=ids, labels=ids, loss_weights=weights)
    torch.testing.assert_close(weighted.mtp_kl, model(input_ids=ids, labels=labels).mtp_kl)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("make", [make_model, make_plus_model])
def test_documents_too_short_for_modules_have_none(ids, length, make):
    model = with_kl(make=make)
    output = model(input_ids=ids[:, :length], labels=ids[:, :length])
    output.loss.backward()
    assert [value > 0 for value in output.mtp_kl] == [length > module + 2 for module in range(NUM_MODULES)]

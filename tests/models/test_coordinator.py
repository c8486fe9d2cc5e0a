"""The coordinator: the loss of mixed predictions, what it teaches, and models with and without it."""

import pytest
import torch
from torch.nn import functional as F
from toy_models import make_model

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models import Qwen2MTPForCausalLM
from vita_audio.models.coordinator import Coordinator
from vita_audio.models.surgery import COORDINATORS, init_missing_mtp, mtp_parameter_patterns, set_trainable

WEIGHT = 0.5
# Two documents in the first row, of which the second is too short for the last module; masked labels in the other.
POSITIONS = torch.tensor([[*range(8), *range(4)], [*range(12)]])


@pytest.fixture
def labels(ids):
    labels = ids.clone()
    labels[1, 3:9] = IGNORE_INDEX
    return labels


def with_coordinator(num_modules=3, **fields):
    return make_model(num_modules, mtp_coordinator_weight=WEIGHT, **fields).train()


def expected_mixture(model, ids, labels):
    """Return the mean over all tokens of -log sum(w p), and the mean of w for each module, written as loops."""
    hidden = model.model(input_ids=ids, position_ids=POSITIONS).last_hidden_state
    if not model.trains_backbone:
        hidden = hidden.detach()
    states = list(model.mtp_chain(model.model.embed_tokens(ids), hidden, POSITIONS))
    log_probs = [model.lm_head(each).log_softmax(-1) for each in states]
    losses, weights = [], [[] for _ in states]
    for row in range(2):
        for place in range(ids.shape[1]):
            modules = [k for k in range(len(states)) if POSITIONS[row, place] >= k + 2]
            if labels[row, place] == IGNORE_INDEX or not modules:
                continue
            scores = [states[k][row, place - k - 2] @ model.mtp_coordinators[k].weight[0] for k in modules]
            mixed = torch.stack(scores).softmax(0)
            probs = [log_probs[k][row, place - k - 2, labels[row, place]].exp() for k in modules]
            losses.append(-(mixed @ torch.stack(probs)).log())
            for k, weight in zip(modules, mixed.tolist(), strict=True):
                weights[k].append(weight)
    return torch.stack(losses).sum(), len(losses), [sum(each) / len(each) for each in weights]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("num_items", [None, 40])
def test_values_and_gradients_are_those_of_the_definition(ids, labels, frozen, num_items):
    model = with_coordinator()
    set_trainable(model, mtp_parameter_patterns(model.config) if frozen else ["*"])
    inputs = {"input_ids": ids, "labels": labels, "position_ids": POSITIONS, "num_items_in_batch": num_items}
    output = model(**inputs)
    total, num_tokens, weights = expected_mixture(model, ids, labels)
    expected = total / (num_items or num_tokens)
    torch.testing.assert_close(output.mixture, expected.detach())
    torch.testing.assert_close(output.mixture_weights, torch.tensor(weights))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(name.startswith(COORDINATORS) for name in trained) == 3
    gradients = torch.autograd.grad(output.loss, trained.values())
    model.config.mtp_coordinator_weight = 0.0
    plain = model(**inputs).loss
    torch.testing.assert_close(output.loss.detach(), (plain + WEIGHT * expected).detach())
    expected_gradients = torch.autograd.grad(plain + WEIGHT * expected, trained.values())
    for name, one, other in zip(trained, gradients, expected_gradients, strict=True):
        assert one.any(), name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_the_weight_of_a_module_that_predicts_noise_falls():
    """The states of the first and the third module contain their tokens, those of the second are random."""
    torch.manual_seed(0)
    labels, positions = torch.randint(0, 20, (4, 30)), torch.arange(30)[None]
    head = torch.nn.Linear(20, 20, bias=False).requires_grad_(False)
    head.weight.copy_(4 * torch.eye(20))
    first, third = (F.one_hot(labels.roll(-shift, dims=1), 20).float() for shift in (2, 4))
    states = [first, torch.randn(4, 30, 20), third]
    coordinator = Coordinator(20, 3)
    optimizer = torch.optim.Adam(coordinator.parameters(), lr=0.1)
    losses, weights = [], []
    for _ in range(50):
        loss, means = coordinator(states, labels, positions, head=head)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        weights.append(means.tolist())
    assert min(weights[0]) > 0.25 and losses[-1] < losses[0] - 0.1
    assert weights[-1][1] < 0.1 and min(weights[-1][0], weights[-1][2]) > 0.3


def test_one_module_has_the_whole_weight(ids):
    model = with_coordinator(num_modules=1)
    output = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(output.mixture, output.mtp_losses[0])
    torch.testing.assert_close(output.mixture_weights, torch.ones(1))


def test_a_batch_without_targets_has_loss_0(ids):
    model = with_coordinator()
    output = model(input_ids=ids, labels=torch.full_like(ids, IGNORE_INDEX))
    output.loss.backward()
    assert output.loss == output.mixture == 0 and not output.mixture_weights.any()
    assert not any(parameter.grad.any() for parameter in model.mtp_coordinators.parameters())


def test_without_a_weight_there_is_none():
    model = make_model(2)
    assert not any(name.startswith(COORDINATORS) for name in model.state_dict())
    ids = torch.arange(12)[None]
    output = model(input_ids=ids, labels=ids)
    assert output.mixture is output.mixture_weights is None


def test_a_stage_without_it_starts_from_one_with_it_and_the_other_way_round(tmp_path):
    model = with_coordinator(num_modules=2)
    model.save_pretrained(tmp_path / "with")
    config = model.config_class.from_pretrained(tmp_path / "with", mtp_coordinator_weight=0.0)
    without, report = Qwen2MTPForCausalLM.from_pretrained(tmp_path / "with", config=config, output_loading_info=True)
    assert not without.mtp_coordinators and not report["unexpected_keys"]
    assert without.state_dict().keys() == {name for name in model.state_dict() if not name.startswith(COORDINATORS)}
    without.save_pretrained(tmp_path / "without")
    config.mtp_coordinator_weight = WEIGHT
    again, report = Qwen2MTPForCausalLM.from_pretrained(tmp_path / "without", config=config, output_loading_info=True)
    names = [f"{COORDINATORS}.{module}.weight" for module in range(2)]
    assert init_missing_mtp(again, report["missing_keys"]) == names
    first, second = (coordinator.weight for coordinator in again.mtp_coordinators)
    assert torch.equal(first, second) and 0 < first.std() < 0.1

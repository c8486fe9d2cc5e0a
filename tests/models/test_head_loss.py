"""The fused loss against the plain one: full logits, torch's cross entropy and autograd."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from toy_models import make_model

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models import head_loss
from vita_audio.models.head_loss import HeadLoss, Teacher, chunk_rows
from vita_audio.models.mtp_loss import MTPLoss

NUM_DEPTHS, BATCH, TIME, HIDDEN, VOCABULARY = 4, 2, 23, 8, 50
POSITIONS = torch.cat([torch.arange(9), torch.arange(13), torch.arange(1)])[None].expand(BATCH, -1)
MTP_WEIGHT = 1.3
CODE_IDS = range(30, 45)


def plain_loss(head, states, labels, loss_weights, num_items, kl_weight, depth_weights):
    """Return the training loss, and by name what is logged for every depth."""
    losses, divergences, accuracies, counts, agreements, audio, num_audio = [], [], [], [], [], [], []
    logits = [head(each) for each in states]
    for depth in range(NUM_DEPTHS):
        terms, taught, hits, weights, agrees, is_audio = [], [], [], [], [], []
        for row in range(BATCH):
            for place in range(TIME - depth - 1):
                target = place + depth + 1
                if POSITIONS[row, target] != POSITIONS[row, place] + depth + 1 or labels[row, target] == IGNORE_INDEX:
                    continue
                scores = logits[depth][row, place]
                weights.append(1.0 if loss_weights is None else loss_weights[row, target].item())
                terms.append(weights[-1] * F.cross_entropy(scores, labels[row, target]))
                teacher = logits[0][row, place + depth].detach().log_softmax(-1)
                taught.append(weights[-1] * (teacher.exp() * (teacher - scores.log_softmax(-1))).sum())
                hits.append((scores.argmax() == labels[row, target]).float())
                agrees.append((scores.argmax() == teacher.argmax()).float())
                is_audio.append(int(labels[row, target]) in CODE_IDS)
        divisor = (num_items or sum(weights)) or 1
        zero = 0 * logits[depth].sum()
        losses.append((sum(terms) + zero) / divisor)
        divergences.append((sum(taught) + zero) / divisor)
        accuracies.append(sum(hits) / max(len(hits), 1))
        counts.append(len(hits))
        agreements.append(sum(agrees) / max(len(agrees), 1))
        audio.append((sum(term for term, is_code in zip(terms, is_audio, strict=True) if is_code) + zero) / divisor)
        num_audio.append(sum(is_audio))
    modules = sum(
        weight * loss for weight, loss in zip(depth_weights or [1] * (NUM_DEPTHS - 1), losses[1:], strict=True)
    )
    loss = MTP_WEIGHT * modules / (NUM_DEPTHS - 1) + kl_weight * sum(divergences[1:]) / (NUM_DEPTHS - 1)
    if head.weight.requires_grad:
        loss = loss + losses[0]
    return loss, {
        "main_loss": losses[0].detach(),
        "mtp_losses": torch.stack(losses[1:]).detach(),
        "mtp_kl": torch.stack(divergences[1:]).detach() if kl_weight else None,
        "accuracies": torch.as_tensor(accuracies),
        "num_targets": torch.tensor(counts),
        "agreements": torch.as_tensor(agreements[1:]),
        "audio_losses": torch.stack(audio).detach(),
        "num_audio_targets": torch.tensor(num_audio),
    }


@pytest.fixture
def case():
    """A head, hidden states of every depth, labels of which some are masked, and their weights."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight.data = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    states = torch.randn(NUM_DEPTHS, BATCH, TIME, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCABULARY, (BATCH, TIME), generator=generator)
    labels[torch.rand(BATCH, TIME, generator=generator) < 0.4] = IGNORE_INDEX
    labels[0, 9:] = torch.where(torch.arange(TIME - 9) % 5 == 0, labels[0, 9:], IGNORE_INDEX)
    return head, states, labels, torch.rand(BATCH, TIME, generator=generator)


@pytest.fixture(params=[2, 7, 10**6], ids=["small chunks", "chunks", "one chunk"])
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(head_loss, "MIN_CHUNK_LOGITS", request.param * VOCABULARY)
    return request.param


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_items", [None, 31])
@pytest.mark.parametrize("depth_weights", [None, [0.8, 0.0, 1.5]])
@pytest.mark.usefixtures("rows_at_once")
def test_equals_the_plain_loss(case, frozen, kl_weight, weighted, num_items, depth_weights):
    head, states, labels, loss_weights = case
    loss_weights = loss_weights if weighted else None
    head.requires_grad_(not frozen)
    plain_states, fused_states = (
        [each.clone().requires_grad_(d > 0 or not frozen) for d, each in enumerate(states)] for _ in range(2)
    )
    expected, logged = plain_loss(head, plain_states, labels, loss_weights, num_items, kl_weight, depth_weights)
    (3 * expected).backward()
    expected_grad, head.weight.grad = head.weight.grad, None
    options = {"mtp_weight": MTP_WEIGHT, "kl_weight": kl_weight, "loss_weights": loss_weights}
    options |= {"depth_weights": depth_weights, "code_ids": CODE_IDS}
    num_items = num_items and torch.tensor(num_items)
    output = MTPLoss()(fused_states, labels, POSITIONS, head=head, num_items_in_batch=num_items, **options)
    (3 * output["loss"]).backward()
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(output["loss"], expected, **close)
    torch.testing.assert_close({name: output[name] for name in logged}, logged, **close)
    for plain, fused in zip(plain_states, fused_states, strict=True):
        torch.testing.assert_close(fused.grad, plain.grad, **close)
    torch.testing.assert_close(head.weight.grad, expected_grad, **close)
    assert not any(value is not None and value.requires_grad for name, value in output.items() if name != "loss")


class Shapes(TorchDispatchMode):
    """Records the shapes of the tensors that operations compute; a view is none."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple) else (result,)
        if not function.is_view:
            self.seen += [each.shape for each in results if torch.is_tensor(each)]
        return result


def score(case, **options):
    head, states, labels, _ = case
    states = [each.clone().requires_grad_() for each in states]
    return MTPLoss()(states, labels, POSITIONS, head=head, **options)


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_logits_exist_for_one_chunk_only(case, rows_at_once, kl_weight):
    saved = []
    with (
        Shapes() as shapes,
        torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each.shape) or each, lambda each: each),
    ):
        loss = score(case, kl_weight=kl_weight)["loss"]
    head_shape = (VOCABULARY, HIDDEN)
    rows = [shape[0] for shape in shapes.seen if len(shape) == 2 and shape[1] == VOCABULARY]
    assert rows and max(rows) <= rows_at_once
    assert not [shape for shape in saved if VOCABULARY in shape]
    with Shapes() as shapes:
        loss.backward()
    assert not [shape for shape in shapes.seen if VOCABULARY in shape and shape != head_shape]


def test_a_large_head_scores_more_rows_at_once():
    assert chunk_rows(torch.empty(1000, 64, device="meta")) == 2**22 // 1000
    assert chunk_rows(torch.empty(168072, 512, device="meta")) == 512 // 4
    assert chunk_rows(torch.empty(152064, 3584, device="meta")) == 3584 // 4
    assert chunk_rows(torch.empty(2**27, 2, device="meta")) == 1


def test_each_teacher_is_scored_once(case):
    """Ten rows about three tokens: three rows of the teacher's logits."""
    head, states, *_ = case
    teacher = Teacher(states[0, 0], torch.tensor([2, 2, 2, 5, 5, 5, 5, 7, 7, 7]), torch.ones(10))
    with Shapes() as shapes:
        HeadLoss.apply(states[1, 0, :10], head.weight.detach(), torch.arange(10), torch.ones(10), teacher)
    assert (3, VOCABULARY) in shapes.seen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradients_are_formed_where_none_are_wanted(case, mode):
    expected = score(case)["loss"]
    with mode(), Shapes() as shapes:
        loss = score(case)["loss"]
    assert not loss.requires_grad and (VOCABULARY, HIDDEN) not in shapes.seen
    torch.testing.assert_close(loss, expected.detach())


def test_a_frozen_head_has_no_gradient_in_memory(case):
    case[0].requires_grad_(False)
    with Shapes() as shapes:
        score(case)["loss"].backward()
    assert (VOCABULARY, HIDDEN) not in shapes.seen and case[0].weight.grad is None


@pytest.mark.parametrize("weights", ["bfloat16", "autocast"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_bfloat16_stays_close_to_float32(case, weights, kl_weight):
    head, states, labels, _ = case
    expected = score(case, kl_weight=kl_weight)["loss"]
    expected.backward()
    expected_grad, head.weight.grad = head.weight.grad, None
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    head = head.to(dtype)
    states = [each.to(dtype, copy=True).requires_grad_() for each in states]
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == "autocast"):
        loss = MTPLoss()(states, labels, POSITIONS, head=head, kl_weight=kl_weight)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and head.weight.grad.dtype == states[1].grad.dtype == dtype
    torch.testing.assert_close(loss, expected.detach(), rtol=0.02, atol=0)  # 8 bits of mantissa
    torch.testing.assert_close(head.weight.grad.float(), expected_grad, rtol=0.05, atol=0.01)


def test_gradients_that_float16_could_not_hold_before_loss_scaling(case):
    """As under a gradient scaler: the number of targets divides at the end."""
    head, states, labels, _ = case
    score(case)["loss"].backward()
    expected, head.weight.grad = head.weight.grad, None
    states = [each.half().requires_grad_() for each in states]
    loss = MTPLoss()(states, labels, POSITIONS, head=head.half(), num_items_in_batch=10**8)["loss"]
    (loss * 10**8).backward()
    num_targets = (labels != IGNORE_INDEX).sum()
    assert expected.norm() > 0 and head.weight.grad.norm() > expected.norm() * num_targets / 4


def test_gradients_are_given_up_in_backward(case):
    loss = score(case)["loss"]
    function = loss.grad_fn.next_functions[0][0]
    assert function.gradients is not None
    loss.backward(retain_graph=True)
    assert function.gradients is None
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_there_are_no_second_derivatives(case):
    head, states, labels, _ = case
    states = [each.clone().requires_grad_() for each in states]
    loss = MTPLoss()(states, labels, POSITIONS, head=head)["loss"]
    (gradient,) = torch.autograd.grad(loss**2, states[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("head", [torch.nn.Linear(HIDDEN, VOCABULARY), torch.nn.Sequential()])
def test_other_heads_are_refused(case, head):
    with pytest.raises(TypeError, match="needs an output layer that is a torch.nn.Linear without a bias, got"):
        score((head, *case[1:]))


def test_a_frozen_backbone_is_scored_on_demand(ids):
    model = make_model(2).train()
    model.lm_head.requires_grad_(False)
    scored = model(input_ids=ids, labels=ids)
    output = model(input_ids=ids, labels=ids, score_backbone=False)
    torch.testing.assert_close(output.loss, scored.loss)
    torch.testing.assert_close(output.mtp_losses, scored.mtp_losses)
    torch.testing.assert_close(output.accuracies[1:], scored.accuracies[1:])
    assert output.main_loss is None and output.accuracies[0].isnan()
    assert output.num_targets.tolist() == scored.num_targets.tolist()
    model.lm_head.requires_grad_(True)
    assert model(input_ids=ids, labels=ids, score_backbone=False).main_loss is not None


def test_without_modules_a_frozen_head_has_a_loss(ids):
    model = make_model(0).train()
    model.lm_head.requires_grad_(False)
    output = model(input_ids=ids, labels=ids, score_backbone=False)
    logits = model.eval()(input_ids=ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, ids[:, 1:].flatten()))

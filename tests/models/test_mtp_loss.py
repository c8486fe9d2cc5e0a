"""The training loss: reference numbers, packed rows, degenerate input, memory, distributed and mixed precision."""

import contextlib

import pytest
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from toy_models import load_case, load_model, make_model

from vita_audio.constants import IGNORE_INDEX
from vita_audio.models.packed_rows import shift_within_documents
from vita_audio.models.surgery import mtp_parameter_patterns, set_trainable

SINGLE = ["train_single_mtp3", "train_single_mtp3_all_labels"]
PACKED = ["packed_mtp3_all_labels", "packed_mtp3_masked_prompts", "packed_mtp3_short_sequences"]


def variants(cases):
    for name in cases:
        for key, variant in load_case(name).expected["variants"].items():
            yield pytest.param(name, variant, id=f"{name}|{key}")


def freeze(model, frozen=True):
    set_trainable(model, mtp_parameter_patterns(model.config) if frozen else ["*"])
    return model


def run_case(name, variant, **load):
    golden = load_case(name)
    model = freeze(load_model(golden.folder, **load).train(), variant["lm_head_frozen"])
    model.config.mtp_loss_weight = variant.get("mtp_loss_weight", 1.0)
    output = model(**golden.inputs, num_items_in_batch=variant["num_items_in_batch"])
    output.loss.backward()
    return golden, model, output


def check_losses(output, expected, tolerance):
    rel = tolerance["losses"]["rel"]
    assert output.loss.item() == pytest.approx(expected["total_loss"], rel=rel)
    assert output.main_loss.item() == pytest.approx(expected["main_ce"], rel=rel)
    assert output.mtp_losses.tolist() == pytest.approx(expected["mtp_ce"], rel=rel)


def check_gradients(model, norms, tolerance):
    parameters = dict(model.named_parameters())
    for name, norm in norms.items():
        gradient = parameters[name].grad
        if norm is None:
            assert gradient is None, name
        else:
            assert gradient.norm().item() == pytest.approx(norm, rel=tolerance["grad_norms"]["rel"]), name


@pytest.mark.parametrize("name, variant", variants(SINGLE))
def test_single_document_matches_the_reference(name, variant):
    golden, model, output = run_case(name, variant)
    check_losses(output, variant, golden.case["tolerance"])
    check_gradients(model, variant["grad_norms"], golden.case["tolerance"])
    assert output.logits is None


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_match_the_reference(name, attention):
    expected = load_case(name).expected["variants"]
    for kind in ("trainable", "frozen"):
        golden, model, _ = run_case(name, expected[f"w=1.0|{kind}|mean"], attention=attention)
        prefix = f"grad.{kind}."
        names = [key.removeprefix(prefix) for key in golden.tensors if key.startswith(prefix)]
        assert names
        for parameter in names:
            torch.testing.assert_close(
                model.get_parameter(parameter).grad,
                golden.tensors[prefix + parameter],
                **golden.case["tolerance"]["grad_tensors"],
            )


@pytest.mark.parametrize("name, variant", variants(PACKED))
def test_packed_documents_match_the_reference_without_border_targets(name, variant):
    """Differs from the reference on purpose: it scores the first token of the next document."""
    golden, model, output = run_case(name, variant)
    expected = variant["boundary_positions_ignored"]
    check_losses(output, expected, golden.case["tolerance"])
    num_targets = expected["n_valid_targets"]
    assert output.num_targets.tolist() == [num_targets["main"], *num_targets["mtp"]]
    border_targets = expected["n_boundary_targets_with_valid_label"]
    if border_targets["main"] == 0 and not any(border_targets["mtp"]):
        check_gradients(model, variant["grad_norms_reference"], golden.case["tolerance"])


@pytest.mark.parametrize("name", PACKED)
def test_packed_logits_match_the_reference(name):
    golden = load_case(name)
    logits = load_model(golden.folder).eval()(**golden.inputs).logits[0]
    torch.testing.assert_close(logits, golden.tensors["main_logits_packed_row"], **golden.case["tolerance"]["logits"])


def test_shift_stays_within_documents():
    x = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert shift_within_documents(x, 0, positions, 0).tolist() == x.tolist()
    assert shift_within_documents(x, 1, positions, 0).tolist() == [[2, 3, 0, 5, 0, 0], [2, 3, 4, 5, 6, 0]]
    assert shift_within_documents(x, 2, positions, -1).tolist() == [[3, -1, -1, -1, -1, -1], [3, 4, 5, 6, -1, -1]]
    assert shift_within_documents(x, 9, positions[:1], 0).tolist() == [[0] * 6] * 2


def test_loss_of_packed_rows_is_that_of_separate_documents(ids):
    model = make_model(3)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    borders = [(0, 0, 5), (0, 5, 8), (0, 8, 9), (0, 9, 12), (1, 0, 1), (1, 1, 12)]
    packed = model(input_ids=ids, labels=ids, position_ids=positions)
    alone = [
        model(input_ids=ids[row : row + 1, start:end], labels=ids[row : row + 1, start:end])
        for row, start, end in borders
    ]
    sums = sum(torch.cat([one.main_loss[None], one.mtp_losses]) * one.num_targets for one in alone)
    counts = sum(one.num_targets for one in alone)
    assert packed.num_targets.tolist() == counts.tolist() == [18, 14, 10, 8]
    torch.testing.assert_close(torch.cat([packed.main_loss[None], packed.mtp_losses]), sums / counts)
    assert all(one.loss.isfinite() for one in alone)


@pytest.mark.parametrize("marked_by", ["labels", "mask"])
def test_right_padding_changes_nothing(ids, marked_by):
    model = make_model(2)
    alone = model(input_ids=ids[:1, :7], labels=ids[:1, :7])
    labels = ids[:1].clone()
    labels[:, 7:] = IGNORE_INDEX
    mask = (torch.arange(12) < 7).long()[None]
    padded = model(input_ids=ids[:1], labels=labels, attention_mask=mask if marked_by == "mask" else None)
    torch.testing.assert_close(padded.loss, alone.loss)
    assert padded.num_targets.tolist() == alone.num_targets.tolist()


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("num_items", [None, 5])
def test_short_documents_have_a_loss_and_gradients(ids, length, frozen, num_items):
    model = freeze(make_model(3).train(), frozen)
    output = model(input_ids=ids[:, :length], labels=ids[:, :length], num_items_in_batch=num_items)
    output.loss.backward()
    assert output.num_targets.tolist() == [2 * max(0, length - depth - 1) for depth in range(4)]
    assert [loss > 0 for loss in output.mtp_losses] == [length > depth + 2 for depth in range(3)]
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("frozen", [False, True])
def test_masked_labels_give_zero_loss_and_zero_gradients(ids, frozen, num_items):
    model = freeze(make_model(2).train(), frozen)
    output = model(input_ids=ids, labels=torch.full_like(ids, IGNORE_INDEX), num_items_in_batch=num_items)
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert output.accuracies.tolist() == [0.0, 0.0, 0.0]
    for parameter in model.parameters():
        assert not parameter.requires_grad or not parameter.grad.any()


def test_weights_of_targets_count_in_the_loss_of_every_depth(ids):
    model = make_model(2)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[0, :5] = IGNORE_INDEX
    output = model(input_ids=ids, labels=labels, loss_weights=weights)
    per_item = model(input_ids=ids, labels=labels, loss_weights=weights, num_items_in_batch=torch.tensor(10))
    hidden = model.model(input_ids=ids).last_hidden_state
    states = [hidden, *model.mtp_chain(model.model.embed_tokens(ids), hidden, torch.arange(12)[None])]
    for depth, depth_states in enumerate(states):
        targets = labels[:, depth + 1 :]
        logits = model.lm_head(depth_states[:, : -depth - 1]).transpose(1, 2)
        entropies = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
        chosen = weights[:, depth + 1 :] * (targets != IGNORE_INDEX)
        for result, divisor in ((output, chosen.sum()), (per_item, 10)):
            loss = torch.cat([result.main_loss[None], result.mtp_losses])[depth]
            torch.testing.assert_close(loss, (entropies * chosen).sum() / divisor)
    ones = model(input_ids=ids, labels=labels, loss_weights=torch.ones_like(weights))
    torch.testing.assert_close(ones.loss, model(input_ids=ids, labels=labels).loss)
    zeros = model(input_ids=ids, labels=labels, loss_weights=torch.zeros_like(weights))
    assert zeros.main_loss == 0.0 and not zeros.mtp_losses.any()


def test_accuracies_count_the_most_likely_token(ids):
    model = make_model(2)
    labels = ids.clone()
    labels[:, 1:] = model(input_ids=ids).logits[:, :-1].argmax(-1)
    labels[0, 6] = 0  # the last id is never drawn for a label above, nor is it predicted everywhere
    output = model(input_ids=ids, labels=labels)
    hit = (model(input_ids=ids).logits[:, :-1].argmax(-1) == labels[:, 1:]).float().mean()
    torch.testing.assert_close(output.accuracies[0], hit)
    hidden = model.model(input_ids=ids).last_hidden_state
    depths = model.mtp_chain(model.model.embed_tokens(ids), hidden, torch.arange(12)[None])
    for depth, states in enumerate(depths):
        guesses = model.lm_head(states[:, : -depth - 2]).argmax(-1)
        torch.testing.assert_close(output.accuracies[depth + 1], (guesses == labels[:, depth + 2 :]).float().mean())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(ids, frozen, use_reentrant):
    plain = freeze(make_model(2).train(), frozen)
    checkpointed = freeze(make_model(2).train(), frozen)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    num_calls = []
    checkpointed.model.layers[3].input_layernorm.register_forward_hook(lambda *_: num_calls.append(1))
    for model in (plain, checkpointed):
        model(input_ids=ids, labels=ids).loss.backward()
    assert len(num_calls) == 2  # the layer of module 1 ran again in the backward pass
    for expected, actual in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_autocast_stays_close_to_full_precision(ids, frozen, attention):
    model = freeze(make_model(2, attention=attention).train(), frozen)
    expected = model(input_ids=ids, labels=ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.02, atol=0.0)  # 8 bits of mantissa
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@contextlib.contextmanager
def single_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("frozen", [False, True])
def test_distributed_training_leaves_no_parameter_unused(tmp_path, ids, frozen):
    """Also with documents that are too short for the modules. An unused parameter makes the second step raise."""
    model = freeze(make_model(3).train(), frozen)
    with single_process_group(tmp_path):
        wrapped = DistributedDataParallel(model)
        for length in (12, 2, 1, 12):
            wrapped(input_ids=ids[:, :length], labels=ids[:, :length]).loss.backward()
        del wrapped  # while the process group exists: freeing the group with it can deadlock with gloo's thread
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_frozen_head_keeps_no_graph_of_the_backbone(ids):
    model = freeze(make_model(2).train())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(1) or tensor, lambda tensor: tensor):
        hidden = model.model.register_forward_hook(lambda *_: saved.append("backbone done"))
        model(input_ids=ids, labels=ids)
    hidden.remove()
    assert saved[0] == "backbone done" and len(saved) > 10


def test_evaluation_gives_logits_beside_the_loss(ids):
    model = make_model(2)
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids, logits_to_keep=1)
        assert output.logits.shape == (2, 1, 101)
        torch.testing.assert_close(output.loss, model.train()(input_ids=ids, labels=ids).loss)


def test_modules_read_token_embeddings_when_the_backbone_reads_others(ids):
    model = make_model(2)
    embeds = model.model.embed_tokens(ids)
    output = model(inputs_embeds=embeds, labels=ids)
    torch.testing.assert_close(output.loss, model(input_ids=ids, labels=ids).loss)
    other = model(input_ids=ids, inputs_embeds=embeds * 0.5, labels=ids)
    hidden = model.model(inputs_embeds=embeds * 0.5).last_hidden_state
    first = next(model.mtp_chain(embeds, hidden, torch.arange(12)[None]))
    expected = F.cross_entropy(model.lm_head(first[:, :-2]).flatten(0, 1), ids[:, 2:].flatten())
    torch.testing.assert_close(other.mtp_losses[0], expected)

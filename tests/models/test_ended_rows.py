"""Rows of a batch that have ended: no call reaches them, and nothing else changes. Failures keep nothing."""

import gc

import pytest
import torch
from toy_models import LENGTHS, check_consistent, make_agreeing_model

from vita_audio.models.decode_state import DecodeState
from vita_audio.models.mtp_generation import mtp_steps

OPTIONS = {"do_sample": False, "max_new_tokens": 24, "mtp_inference_mode": "boost", "pad_token_id": 0}
FULL = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}


@pytest.fixture(scope="module")
def model():
    return make_agreeing_model(4, disagreement=0.02)


@pytest.fixture(scope="module")
def ends(model, prompts):
    """Tokens that end the rows at many different places."""
    answers = model.generate(**prompts, **OPTIONS)[:, 12:]
    ends = [int(row[3 * number % 24]) for number, row in enumerate(answers[:5])]
    assert len({next((i for i, token in enumerate(row) if token in ends), 24) for row in answers.tolist()}) > 3
    return {"eos_token_id": ends}


def run(model, inputs, **options):
    """Generate, and return the output and the rows of each backbone pass."""
    rows = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    output = model.generate(**inputs, **OPTIONS | FULL | options)
    handle.remove()
    return output, rows


@pytest.mark.parametrize("acceptance", [0, 0.97, 1])
@pytest.mark.parametrize("processors", [{}, {"repetition_penalty": 1.3}], ids=str)
def test_ended_rows_take_part_in_no_call(model, prompts, ends, acceptance, processors):
    options = {**ends, **processors, "acceptance": acceptance}
    batch, rows = run(model, prompts, **options)
    assert rows[0] == 8 > rows[-1] and rows == sorted(rows, reverse=True)
    assert (batch.steps is not None) == (acceptance == 0)  # committed rows differ in length only
    num_positions = 0
    for row, length in enumerate(LENGTHS):
        single = {"input_ids": prompts["input_ids"][row : row + 1, 12 - length :]}
        alone, passes = run(model, single, **options)
        answer = alone.sequences[0, length:].tolist()
        assert batch.sequences[row, 12:].tolist() == answer + [0] * (batch.sequences.shape[1] - 12 - len(answer))
        assert batch.counts[row] == alone.counts[0]
        for name in ("logits", "scores"):
            values = torch.stack(getattr(batch, name))[:, row]
            expected = torch.stack(getattr(alone, name))[:, 0]
            torch.testing.assert_close(values[: len(answer)], expected, atol=1e-4, rtol=1e-4)
            assert not values[len(answer) :].any()
        num_positions += len(passes)
    assert sum(rows) == num_positions


@pytest.mark.parametrize("acceptance", [0, 1])
def test_a_batch_continues_after_its_rows_have_ended_in_turn(model, prompts, ends, acceptance):
    state, options = DecodeState(), OPTIONS | FULL | {"acceptance": acceptance}
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    for more in (ends, {}, ends):
        continued = model.generate(ids, attention_mask=mask, decode_state=state, **options, **more)
        anew = model.generate(ids, attention_mask=mask, **options, **more)
        assert continued.sequences.tolist() == anew.sequences.tolist() == state.tokens.tolist()
        torch.testing.assert_close(continued.logits, anew.logits, atol=1e-4, rtol=1e-4)
        check_consistent(state)
        assert min(state.num_read[:1]) >= ids.shape[1]
        ids = torch.cat([continued.sequences, prompts["input_ids"][:, -3:]], dim=1)
        mask = torch.cat([mask, torch.ones_like(ids[:, mask.shape[1] :])], dim=1)


@pytest.mark.parametrize("acceptance", [0, 0.5])
@pytest.mark.parametrize("layer, call", [(0, 1), (1, 3), (4, 2)])
def test_a_batch_that_runs_out_of_memory_keeps_nothing(model, prompts, ends, acceptance, layer, call):
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("out of memory")

    def num_tensors():
        gc.collect()
        return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())

    options = {**OPTIONS, **ends, "acceptance": acceptance}
    expected = model.generate(**prompts, **options).tolist()
    names, before = [sorted(vars(module)) for module in model.modules()], num_tensors()
    handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        model.generate(**prompts, **options)
    handle.remove()
    assert num_tensors() == before and [sorted(vars(module)) for module in model.modules()] == names
    assert model.generate(**prompts, **options).tolist() == expected


@pytest.mark.parametrize("acceptance", [0, 1])
def test_a_state_is_closed_in_the_middle_of_a_batch(model, prompts, ends, acceptance):
    options = {**OPTIONS, **ends, "acceptance": acceptance}
    for num_steps in (1, 5, 9, 14):
        state = DecodeState()
        steps = model.generate(**prompts, **options, custom_generate=mtp_steps, decode_state=state)
        tokens = torch.stack([step.tokens for _, step in zip(range(num_steps), steps, strict=False)], dim=1)
        assert state.tokens.tolist() == torch.cat([prompts["input_ids"], tokens], dim=1).tolist()
        steps.close()
        check_consistent(state)
        assert state.tokens.tolist() == torch.cat([prompts["input_ids"], tokens], dim=1).tolist()

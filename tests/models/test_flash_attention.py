"""The FlashAttention path, with its two kernels written in plain torch: they exist for GPUs only.

Everything around the kernels is the real path of transformers: unpadding, documents found in position ids, alignment.
The last test runs the real ones, where there is a GPU.
"""

import pytest
import torch
from toy_models import load_case, load_model, make_model
from transformers import LogitsProcessor, modeling_flash_attention_utils
from transformers.utils import is_flash_attn_2_available

PLAN = [1, 3, 2, 2]
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])


def attend(query, key, value, causal, softmax_scale, **_):
    """Attention of (batch, time, heads, dim) tensors; a causal mask is aligned to the last key."""
    repeats = query.shape[2] // key.shape[2]
    key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * softmax_scale
    if causal:
        later = torch.ones(scores.shape[-2:]).triu(1 + scores.shape[-1] - scores.shape[-2]).bool()
        scores = scores.masked_fill(later, -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), value)


def attend_varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, **arguments):
    parts = []
    for index in range(len(cu_seqlens_q) - 1):
        queries = slice(cu_seqlens_q[index], cu_seqlens_q[index + 1])
        keys = slice(cu_seqlens_k[index], cu_seqlens_k[index + 1])
        parts.append(attend(query[None, queries], key[None, keys], value[None, keys], **arguments)[0])
    return torch.cat(parts)


def kernel_arguments(*, is_causal, softmax_scale, query_length, **_):
    return {"causal": is_causal and query_length > 1, "softmax_scale": softmax_scale}


@pytest.fixture(autouse=True)
def kernels(monkeypatch, request):
    if request.node.get_closest_marker("gpu"):
        return
    pad, unpad = modeling_flash_attention_utils._pad_input, modeling_flash_attention_utils._unpad_input
    functions = (attend, attend_varlen, None, pad, unpad), (kernel_arguments, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda _: functions)


def use_flash(model):
    model.config._attn_implementation = "flash_attention_2"
    return model


@pytest.mark.parametrize("rows", [1, 2])
def test_packed_rows_equal_sdpa(ids, rows):
    """Flash attention of transformers looks for documents in single rows only; batches of packed rows need care."""
    arguments = {"input_ids": ids[:rows], "labels": ids[:rows], "position_ids": POSITIONS[:rows]}
    sdpa, flash = make_model(3).train(), use_flash(make_model(3)).train()
    expected, output = sdpa(**arguments), flash(**arguments)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.mtp_losses, expected.mtp_losses)
    torch.testing.assert_close(flash.eval()(**arguments).logits, sdpa.eval()(**arguments).logits)


def test_padded_rows_equal_sdpa(ids):
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    arguments = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    expected, output = make_model(3)(**arguments), use_flash(make_model(3))(**arguments)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.mtp_losses, expected.mtp_losses)


@pytest.mark.parametrize("name", ["generate_mtp10", "generate_mtp1_overflow"])
def test_tokens_match_the_reference(name):
    golden = load_case(name)
    model = use_flash(load_model(golden.folder).eval())
    for run in golden.expected["runs"][:5]:
        prompt = golden.inputs[f"prompt{run['prompt']}"]
        output = model.generate(
            prompt,
            mtp_inference_mode=run["mode"],
            max_new_tokens=run["max_new_tokens"],
            repetition_penalty=run["repetition_penalty"],
            eos_token_id=run["eos_token_id"],
            do_sample=False,
        )
        assert output[0, prompt.shape[1] :].tolist() == run["output_ids"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padded_batch_equals_sdpa(ids, use_cache):
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    arguments = {"attention_mask": mask, "mtp_inference_mode": PLAN, "do_sample": False, "max_new_tokens": 10}
    arguments |= {"use_cache": use_cache, "return_dict_in_generate": True, "output_logits": True}
    expected = make_model(2).generate(ids, **arguments)
    output = use_flash(make_model(2)).generate(ids, **arguments)
    assert output.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=1e-4)


class Forced(LogitsProcessor):
    """Chooses the tokens of a sequence that is known, (batch, prompt + new)."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf).scatter(1, self.tokens[:, input_ids.shape[1], None], 0.0)


def run_all_paths(model, ids, device, tokens=None):
    """Logits of packed rows and of each step of a left-padded batch, losses, and the ids of the batch."""
    ids, positions = ids.to(device), POSITIONS.to(device)
    with torch.no_grad():
        packed = model(input_ids=ids, labels=ids, position_ids=positions)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    generated = model.generate(
        ids,
        attention_mask=mask,
        mtp_inference_mode=PLAN,
        do_sample=False,
        max_new_tokens=10,
        return_dict_in_generate=True,
        output_logits=True,
        logits_processor=[] if tokens is None else [Forced(tokens)],
    )
    losses = torch.cat([packed.main_loss[None], packed.mtp_losses])
    return (packed.logits.float(), torch.stack(generated.logits)), losses, generated.sequences


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()), reason="needs a CUDA device and flash-attn"
)
def test_real_kernels_are_as_exact_as_sdpa(ids, device="cuda"):
    """They know half precision only, so what counts is the distance to float32: at most 3 times that of sdpa."""
    exact, losses, tokens = run_all_paths(make_model(3).to(device), ids, device)
    sdpa, _, _ = run_all_paths(make_model(3).to(device, torch.bfloat16), ids, device, tokens)
    flash, flash_losses, _ = run_all_paths(use_flash(make_model(3)).to(device, torch.bfloat16), ids, device, tokens)
    for expected, half, result in zip(exact, sdpa, flash, strict=True):
        assert (result - expected).abs().max() <= 3 * (half - expected).abs().max()
    torch.testing.assert_close(flash_losses, losses, rtol=0.02, atol=0.0)  # 8 bits of mantissa

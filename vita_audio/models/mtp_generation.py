"""Decoding in which MTP modules commit tokens between backbone steps, as in VITA-Audio (arXiv 2505.03739).

An interleave plan says which depth predicts each token: 0 is the backbone, k the k-th prediction depth. The tokens of
the modules are final at once, or with an `acceptance` above 0 once the backbone has verified them. Complete answers,
batches and streams all consume the generator `mtp_steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.utils.generic import is_flash_attention_requested

from vita_audio.files.permissions import restore_permissions
from vita_audio.interleave import MODES, InterleavePlan
from vita_audio.models.decode_state import DecodeState, MTPModel, begin_decoding
from vita_audio.models.decode_step import DecodeCounts, DecodeStep, count_rows
from vita_audio.models.decoding import Decoding
from vita_audio.models.module_head import ModuleHead
from vita_audio.models.verification import FirstChunk, Verification


def mtp_steps(
    model: MTPModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    plan: InterleavePlan,
    decode_state: DecodeState | None = None,
    verification: Verification | None = None,
    module_tokens: Sequence[int] | None = None,
    module_context: Sequence[int] | None = None,
    **prepared,
) -> Generator[DecodeStep, None, None]:
    """Decode with an interleave plan, one step for each `next`; `generate(custom_generate=mtp_steps)` returns it.

    The state is consistent between steps, so closing the iterator ends the generation and nothing else is to be done.

    Args:
        plan, decode_state, verification, module_tokens, module_context: Bound by `MTPGenerationMixin.generate`.
        prepared: Arguments of `begin_decoding` as transformers prepares them. They must not be named in this signature:
            transformers takes every named argument of a custom function for an option of its own.
    Raises: ValueError at once, not at the first `next`, for search modes other than greedy search and sampling, and as
        `begin_decoding` does.
    """
    _check_supported(generation_config)
    verification = Verification() if verification is None else verification
    module_head = None if module_tokens is None else ModuleHead(model.lm_head, module_tokens, module_context)
    state = DecodeState() if decode_state is None else decode_state
    begin_decoding(model, input_ids, state, max_length=generation_config.max_length, **prepared)
    has_modules = any(plan.ratio[1::2]) and model.config.num_nextn_predict_layers > 0
    if verification.acceptance > 0 and has_modules and is_flash_attention_requested(model.config):
        if len(state.tokens) > 1 or state.has_padding:
            raise ValueError(
                f"acceptance above 0 with flash attention works for one row without padding, got {len(state.tokens)} "
                'rows; load the model with attn_implementation="sdpa"'
            )
    pad_id = _padding_id(generation_config, stopping_criteria)
    arguments = (logits_processor, stopping_criteria, generation_config, plan, verification, pad_id, module_head)
    steps = Decoding(model, state, *arguments).steps()
    state.claim(steps)
    return steps


def _padding_id(generation_config: GenerationConfig, stopping_criteria: StoppingCriteriaList) -> int:
    """Return the token that follows the end of a row, as in transformers; 0 where no token ends rows."""
    if generation_config.pad_token_id is not None:
        return int(generation_config.pad_token_id)
    end_ids = [criterion.eos_token_id for criterion in stopping_criteria if hasattr(criterion, "eos_token_id")]
    return int(end_ids[0].flatten()[0]) if end_ids else 0


def _check_supported(generation_config: GenerationConfig) -> None:
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            f"interleave plans work with greedy search and sampling, got {mode.value}; call the model's generate with "
            "mtp_inference_mode='vanilla', which has all search modes, or give num_beams=1 and no prompt lookup"
        )


@dataclass
class MTPDecodeOutput(GenerateDecoderOnlyOutput):
    """Output of `generate` with `return_dict_in_generate` where an interleave plan decodes.

    Attributes:
        steps: Depth that predicted each new token, 0 for the backbone; None where the rows differ, as they do in
            batches with an acceptance above 0.
        counts: Who made the tokens of each row.
        state: State to continue from, as `decode_state` of the next `generate`.
    """

    steps: tuple[int, ...] | None = None
    counts: tuple[DecodeCounts, ...] | None = None
    state: DecodeState | None = None


def mtp_decode(
    model: MTPModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    plan: InterleavePlan,
    decode_state: DecodeState | None = None,
    verification: Verification | None = None,
    module_tokens: Sequence[int] | None = None,
    module_context: Sequence[int] | None = None,
    streamer: BaseStreamer | None = None,
    **prepared,
) -> MTPDecodeOutput | Tensor:
    """Collect all of `mtp_steps`; a `custom_generate` function whose arguments are the same.

    Returns: Ids, (batch, prompt + new), or MTPDecodeOutput with `return_dict_in_generate`.
    """
    state = DecodeState() if decode_state is None else decode_state
    as_dict, scores, logits = generation_config.return_dict_in_generate, [], []
    is_new, depths, drafts = [], [], []
    arguments = (model, input_ids, logits_processor, stopping_criteria, generation_config, plan, state, verification)
    for step in mtp_steps(*arguments, module_tokens, module_context, **prepared):
        if as_dict:
            is_new.append(step.is_new)
            depths.append(step.depths)
            drafts.append(step.drafts)
            scores += [step.scores] if generation_config.output_scores else []
            logits += [step.logits] if generation_config.output_logits else []
        if streamer is not None:
            streamer.put(step.tokens.cpu())
    if streamer is not None:
        streamer.end()
    if not as_dict:
        return state.tokens
    rows_agree = all(len(set(made_by)) == 1 for made_by in depths)
    return MTPDecodeOutput(
        sequences=state.tokens,
        scores=tuple(scores) if generation_config.output_scores else None,
        logits=tuple(logits) if generation_config.output_logits else None,
        past_key_values=state.cache,
        steps=tuple(made_by[0] for made_by in depths) if rows_agree else None,
        counts=count_rows(torch.stack(is_new, dim=1), depths, drafts),
        state=state,
    )


class MTPGenerationMixin:
    """Gives `generate` interleave plans and states to continue from; precedes transformers' GenerationMixin."""

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args,
        mtp_inference_mode: InterleavePlan | str | Sequence[int] | None = None,
        decode_state: DecodeState | None = None,
        acceptance: float | None = None,
        first_chunk: FirstChunk = "verified",
        module_tokens: Sequence[int] | None = None,
        module_context: Sequence[int] | None = None,
        custom_generate: Callable[..., Any] | str | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs,
    ) -> MTPDecodeOutput | Tensor | Generator[DecodeStep, None, None]:
        """Generate as transformers does, or with an interleave plan.

        Args:
            mtp_inference_mode: An `InterleavePlan`, its name or ratio; by default the generation config's. Without one,
                and with "vanilla", transformers' own search modes decode with the backbone alone.
            decode_state: State of an earlier call, from which this one continues: give the whole `input_ids`, of which
                only the positions after the longest common prefix are read. An empty state is filled.
            acceptance: How far the modules' tokens must agree with the backbone, from 0 (all are final at once) to 1
                (the backbone alone could have made them), see `vita_audio.models.verification`; by default the
                generation config's, else 0. No effect with a plan without modules.
            first_chunk: "committed" hands on the first tokens of modules at once, whatever the acceptance.
            module_tokens: Ids of the only tokens that the modules score, which saves most of the work of a large head;
                None: all. The backbone always scores all.
            module_context: With `module_tokens`, the tokens after which the modules score nothing else; elsewhere they
                score all. None: they never do.
            custom_generate: `mtp_steps` for an iterator over single steps, also with "vanilla"; otherwise as in
                transformers.
        Raises: ValueError for an unknown plan, and as `mtp_steps` does.
        """
        mode = mtp_inference_mode
        for config in (generation_config, self.generation_config):
            mode = getattr(config, "mtp_inference_mode", None) if mode is None else mode
            acceptance = getattr(config, "acceptance", None) if acceptance is None else acceptance
        verification = Verification(0 if acceptance is None else acceptance, first_chunk)
        plan = InterleavePlan.parse(MODES["vanilla"] if mode is None else mode)
        has_modules, is_ours = any(plan.ratio[1::2]), custom_generate in (None, mtp_steps)
        if is_ours and (has_modules or decode_state is not None or custom_generate is mtp_steps):
            if kwargs.get("assistant_model") is not None:
                raise ValueError("MTP modules exclude an assistant_model; give mtp_inference_mode='vanilla'")
            configs = [config for config in (generation_config, self.generation_config) if config is not None]
            kwargs = _with_stop_strings(kwargs, [config.stop_strings for config in configs])
            bound = {"plan": plan, "decode_state": decode_state, "verification": verification}
            bound |= {"module_tokens": module_tokens, "module_context": module_context}
            if custom_generate is None:  # transformers does not pass the streamer to a custom function
                custom_generate, bound = mtp_decode, {**bound, "streamer": streamer}
            custom_generate = partial(custom_generate, **bound)
        return super().generate(
            inputs, generation_config, *args, custom_generate=custom_generate, streamer=streamer, **kwargs
        )

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs) -> None:
        """Save model and generation config.

        A generation config that transformers has derived from a model config says so in its file and is loaded without
        fields of our own, such as `mtp_inference_mode`. Therefore a copy without that remark is saved.
        """
        values = self.generation_config.to_diff_dict()
        self.generation_config = GenerationConfig(**{k: v for k, v in values.items() if not k.startswith("_")})
        super().save_pretrained(save_directory, *args, **kwargs)
        restore_permissions(Path(save_directory))


def _with_stop_strings(arguments: dict[str, Any], defaults: Sequence[Any]) -> dict[str, Any]:
    """Turn stop strings into a stopping criterion, since transformers drops the tokenizer for a custom function.

    Args:
        arguments: Arguments of `generate`.
        defaults: Stop strings of generation configs, in order of precedence.
    Returns: New arguments.
    Raises: ValueError for stop strings without a tokenizer.
    """
    arguments = dict(arguments)
    tokenizer = arguments.pop("tokenizer", None)
    stop_strings = next(filter(None, [arguments.get("stop_strings"), *defaults]), None)
    if not stop_strings:
        return arguments
    if tokenizer is None:
        raise ValueError(f"stop_strings need a tokenizer to be found, got {stop_strings!r}; give tokenizer=")
    criteria = [*(arguments.get("stopping_criteria") or []), StopStringCriteria(tokenizer, stop_strings)]
    return {**arguments, "stop_strings": None, "stopping_criteria": StoppingCriteriaList(criteria)}

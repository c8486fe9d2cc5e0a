"""Decoding in which MTP modules commit tokens between backbone steps, as in VITA-Audio (arXiv 2505.03739).

An interleave plan says who predicts each token. Nothing is verified or taken back: a backbone step reads all tokens it
has not read yet in one causal call, and so does a module with the pairs it has missed since its last turn. Therefore
cached decoding equals computing everything anew for each token.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode
from transformers.generation.streamers import BaseStreamer

from vita_audio.interleave import BACKBONE, InterleavePlan

if TYPE_CHECKING:
    from vita_audio.models.qwen2_mtp import Qwen2MTPForCausalLM

logger = logging.getLogger(__name__)


@dataclass
class MTPDecodeOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns with `return_dict_in_generate` where modules take part.

    Args:
        steps: Who predicted each new token: -1 for the backbone, k for MTP module k.
    """

    steps: tuple[int, ...] | None = None


@dataclass
class DecodeState:
    """All that changes while decoding one batch.

    The stream is everything the model has read or will read, position by position. `tokens` are its last ids; what lies
    before them (a prompt given as embeddings, or text from an earlier call) is known by embeddings only.

    Args:
        tokens: Ids as the caller sees them, prompt and new ones, (batch, tokens).
        position_ids: Rotary positions of the stream, (batch or 1, stream).
        attention_mask: 0 for padding, (batch, stream); None without padding.
        backbone_prompt: Embeddings that the backbone reads at the start of the stream instead of those of `tokens`,
            (batch, prompt, hidden).
        module_prompt: The same for the modules.
        cache: Keys and values of all layers; None computes everything anew in each step.
        pending: pending[k]: hidden states that module k has not read yet, (batch, time, hidden).
    """

    tokens: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None = None
    backbone_prompt: Tensor | None = None
    module_prompt: Tensor | None = None
    cache: Cache | None = None
    pending: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.position_ids.shape[1]

    def append(self, next_tokens: Tensor) -> None:
        """Add one token a row, (batch,)."""
        self.tokens = torch.cat([self.tokens, next_tokens[:, None]], dim=1)
        self.position_ids = torch.cat([self.position_ids, self.position_ids[:, -1:] + 1], dim=1)
        if self.attention_mask is not None:
            self.attention_mask = torch.cat([self.attention_mask, torch.ones_like(self.attention_mask[:, :1])], dim=1)

    def embed(self, model: Qwen2MTPForCausalLM, start: int, end: int, prompt: Tensor | None) -> Tensor:
        """Embed positions `start` to `end` of the stream, (batch, end - start, hidden)."""
        offset = self.length - self.tokens.shape[1]  # position of the first token
        split = min(max(offset if prompt is None else prompt.shape[1], start), end)
        token_embeds = model.get_input_embeddings()(self.tokens[:, split - offset : end - offset])
        return token_embeds if split == start else torch.cat([prompt[:, start:split], token_embeds], dim=1)

    def read(self, model: Qwen2MTPForCausalLM, depth: int, end: int) -> Tensor:
        """Let one depth read what it has not read of the first `end` tokens.

        Args:
            depth: BACKBONE or the module.
        Returns: Hidden state from which the head predicts the next token, (batch, 1, hidden).
        """
        mask = None if self.attention_mask is None else self.attention_mask[:, : end - depth - 1]
        if depth == BACKBONE:
            start = 0 if self.cache is None else int(self.cache.get_seq_length())
            hidden_states = model.model(
                inputs_embeds=self.embed(model, start, end, self.backbone_prompt),
                attention_mask=mask,
                position_ids=self.position_ids[:, start:end],
                past_key_values=self.cache,
                use_cache=self.cache is not None,
            ).last_hidden_state
        else:
            start = end - self.pending[depth].shape[1]
            hidden_states = model.mtp_step(
                depth,
                self.embed(model, start, end, self.module_prompt),
                self.pending[depth],
                self.position_ids[:, start:end],
                mask,
                self.cache,
            )
            self.pending[depth] = hidden_states[:, :0]
        if depth + 1 < len(self.pending):
            self.pending[depth + 1] = torch.cat([self.pending[depth + 1].to(hidden_states), hidden_states], dim=1)
        return hidden_states[:, -1:]

    def step(self, model: Qwen2MTPForCausalLM, depth: int) -> Tensor:
        """Return the logits of the next token as one depth predicts it, (batch, vocabulary), float32."""
        if self.cache is None:
            self.pending = [hidden_states[:, :0] for hidden_states in self.pending]
            for earlier in range(BACKBONE, depth):
                self.read(model, earlier, self.length - depth + earlier)
        return model.lm_head(self.read(model, depth, self.length))[:, -1].float()


def begin_decoding(
    model: Qwen2MTPForCausalLM,
    input_ids: Tensor,
    num_modules: int,
    *,
    position_ids: Tensor,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    **_: object,
) -> DecodeState:
    """Make the state for a prompt, which may go on from the cache of an earlier call.

    A cache that `mtp_decode` left carries what the modules have not read. Any other cache lacks their part, and one of
    other tokens has a wrong part, for modules read ahead of the backbone. Both are emptied and the prompt read again.

    Args:
        num_modules: Modules of the model.
        position_ids: Positions of the whole stream, (batch or 1, stream).
        attention_mask: Of the whole stream, (batch, stream).
    Raises: ValueError if prompt, mask and cache do not fit together.
    """
    batch_size, num_ids = input_ids.shape
    num_given = num_ids if inputs_embeds is None else inputs_embeds.shape[1]
    if not num_given:
        raise ValueError("a prompt must have at least one token, got none; begin with a start token")
    if inputs_embeds is not None and num_ids not in (0, num_given):
        raise ValueError(f"input_ids and inputs_embeds must be equally long, got {num_ids} and {num_given} tokens")
    num_before = position_ids.shape[1] - num_given  # tokens of an earlier call that the caller does not repeat
    num_cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if num_before not in (0, num_cached) or num_before + num_given <= num_cached:
        raise ValueError(
            f"with {num_cached} tokens in the cache give either all ids and more, or the ids that follow them and the "
            f"attention_mask of all; got {num_given} ids and a mask of {position_ids.shape[1]}"
        )
    hidden_size = model.config.hidden_size
    empty = torch.empty((batch_size, 0, hidden_size))
    backbone_prompt = inputs_embeds
    if inputs_embeds is not None and num_before:  # what lies before is in the cache and never read again
        backbone_prompt = torch.cat([inputs_embeds.new_zeros((batch_size, num_before, hidden_size)), inputs_embeds], 1)
    state = DecodeState(
        tokens=input_ids,
        position_ids=position_ids,
        attention_mask=attention_mask,
        backbone_prompt=backbone_prompt,
        module_prompt=inputs_embeds if num_ids == 0 else None,
        cache=past_key_values,
        pending=[empty] * num_modules,
    )
    if num_cached and num_modules:
        _take_over_modules(model, state, num_before, inputs_embeds)
    return state


def _take_over_modules(
    model: Qwen2MTPForCausalLM, state: DecodeState, num_before: int, inputs_embeds: Tensor | None
) -> None:
    """Continue where the modules of an earlier call stopped, or empty its cache so that all is read again.

    Args:
        num_before: Tokens of the earlier call that the caller does not repeat.
        inputs_embeds: What the caller gave instead of ids or beside them.
    Raises: ValueError if the earlier call was another one and its tokens are not here to be read again.
    """
    num_modules = len(state.pending)
    earlier = _earlier_state(state.cache, len(state.tokens), num_modules)
    if earlier is not None and num_before:
        before = earlier.embed(model, 0, num_before, earlier.module_prompt)
        state.module_prompt = before if state.tokens.shape[1] else torch.cat([before, inputs_embeds], dim=1)
    if earlier is not None and _goes_on(model, state, earlier, num_before):
        state.pending = list(earlier.pending)
    elif num_before == 0:
        logger.info("the cache is not that of these tokens and %d MTP modules: reading all again", num_modules)
        state.cache.reset()
    else:
        raise ValueError(
            f"the cache was not made by generate with {num_modules} MTP modules and these tokens; give all ids, "
            "not only those that follow it"
        )


def _cache_lengths(cache: Cache) -> list[int]:
    return [int(layer.get_seq_length()) for layer in cache.layers]


def _earlier_state(cache: Cache, batch_size: int, num_modules: int) -> DecodeState | None:
    """Return the state in which `mtp_decode` left the cache, or None if something has changed the cache since."""
    earlier, lengths = getattr(cache, "mtp_progress", (None, None))
    if earlier is None or lengths != _cache_lengths(cache):
        return None
    return earlier if (len(earlier.pending), earlier.tokens.shape[0]) == (num_modules, batch_size) else None


def _goes_on(model: Qwen2MTPForCausalLM, state: DecodeState, earlier: DecodeState, start: int) -> bool:
    """Tell whether a stream repeats from `start` on what modules may have read of the earlier one: all but its end."""
    end = earlier.length - 1
    if state.length < end:
        return False
    given = state.embed(model, start, end, state.module_prompt)
    return bool((given == earlier.embed(model, start, end, earlier.module_prompt)).all())


def _check_supported(generation_config: GenerationConfig) -> None:
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            f"MTP modules work with greedy search and sampling, got {mode.value}; give mtp_inference_mode='vanilla', "
            "which has all search modes, or num_beams=1 and no prompt lookup"
        )
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(generation_config, name):
            raise ValueError(f"{name} is not available with MTP modules; give mtp_inference_mode='vanilla'")


def _choose_tokens(scores: Tensor, do_sample: bool) -> Tensor:
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)


@torch.no_grad()
def mtp_decode(
    model: Qwen2MTPForCausalLM,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    plan: InterleavePlan,
    streamer: BaseStreamer | None = None,
    **kwargs,
) -> MTPDecodeOutput | Tensor:
    """Generate with an interleave plan that has module steps; a `custom_generate` function with `plan` bound.

    Args:
        input_ids: Prompt, (batch, time); without ids if the prompt is given as `inputs_embeds`.
        kwargs: `position_ids`, `attention_mask`, `inputs_embeds`, `past_key_values` as `generate` prepares them.
    Returns: Ids, (batch, prompt + new), or MTPDecodeOutput with `return_dict_in_generate`. Its cache also carries what
        the modules have not read yet, so that a later call can go on from it.
    Raises: ValueError for beam search and other search modes, and for a cache that cannot be continued.
    """
    _check_supported(generation_config)
    steps = plan.steps(model.config.num_nextn_predict_layers)
    state = begin_decoding(model, input_ids, model.config.num_nextn_predict_layers, **kwargs)
    as_dict = generation_config.return_dict_in_generate
    has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    unfinished = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    scores, raw_logits, depths = [], [], []
    while unfinished.any():
        depths.append(next(steps))
        logits = state.step(model, depths[-1]).to(input_ids.device)
        token_scores = logits_processor(state.tokens, logits.clone() if generation_config.output_logits else logits)
        if as_dict:
            scores += [token_scores] if generation_config.output_scores else []
            raw_logits += [logits] if generation_config.output_logits else []
        next_tokens = _choose_tokens(token_scores, generation_config.do_sample)
        if has_eos:
            next_tokens = torch.where(unfinished, next_tokens, generation_config._pad_token_tensor)
        state.append(next_tokens)
        if streamer is not None:
            streamer.put(next_tokens.cpu())
        unfinished = unfinished & ~stopping_criteria(state.tokens, tuple(scores) or None)
    if streamer is not None:
        streamer.end()
    if state.cache is not None:
        state.cache.mtp_progress = dataclasses.replace(state, cache=None), _cache_lengths(state.cache)
    if not as_dict:
        return state.tokens
    return MTPDecodeOutput(
        sequences=state.tokens,
        scores=tuple(scores) if generation_config.output_scores else None,
        logits=tuple(raw_logits) if generation_config.output_logits else None,
        past_key_values=state.cache,
        steps=tuple(depths),
    )


class MTPGenerationMixin:
    """Gives `generate` the argument `mtp_inference_mode`; stands before a class with transformers' GenerationMixin."""

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args,
        mtp_inference_mode: InterleavePlan | str | Sequence[int] | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs,
    ) -> MTPDecodeOutput | Tensor:
        """Generate as transformers does, with MTP modules if an interleave plan is given.

        Args:
            mtp_inference_mode: An `InterleavePlan`, its name or ratio. Default: that of the generation config. Where it
                has none, and with "vanilla", the backbone alone generates, in all of transformers' search modes.
        Raises: ValueError for an unknown plan, or modules together with a search mode other than greedy and sampling.
        """
        mode = mtp_inference_mode
        for config in (generation_config, self.generation_config):
            mode = getattr(config, "mtp_inference_mode", None) if mode is None else mode
        plan = None if mode is None else InterleavePlan.parse(mode)
        if plan is not None and any(plan.ratio[1::2]):
            if kwargs.get("assistant_model") is not None:
                raise ValueError("MTP modules exclude an assistant_model; give mtp_inference_mode='vanilla'")
            # the streamer is bound, since transformers does not hand it to a custom function
            kwargs["custom_generate"] = partial(mtp_decode, plan=plan, streamer=streamer)
        return super().generate(inputs, generation_config, *args, streamer=streamer, **kwargs)

    def save_pretrained(self, *args, **kwargs) -> None:
        """Save model and generation config, marked so that loading keeps its `mtp_inference_mode`."""
        self.generation_config._from_model_config = False
        super().save_pretrained(*args, **kwargs)

    def _extract_generation_mode_kwargs(self, custom_generate, kwargs, *args, **more):
        tokenizer = kwargs.get("tokenizer")  # stop strings need it, but transformers drops it for a custom function
        mode_kwargs = super()._extract_generation_mode_kwargs(custom_generate, kwargs, *args, **more)
        return mode_kwargs if tokenizer is None else {**mode_kwargs, "tokenizer": tokenizer}

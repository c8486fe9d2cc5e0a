"""The state of decoding: tokens, how much of them each depth has read, its cache, and what is pending.

A depth reads everything it has not read yet in one causal call. Therefore cached decoding equals computing everything
again for each token, and a conversation can continue from the state in which an earlier answer ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from vita_audio.interleave import BACKBONE


class MTPModel(Protocol):
    """The parts of a model that decoding uses; `config` has `num_backbone_layers` and `num_nextn_predict_layers`."""

    config: Any
    model: Callable[..., Any]
    lm_head: nn.Module

    def get_input_embeddings(self) -> nn.Module: ...

    def mtp_step(
        self,
        depth: int,
        inputs_embeds: Tensor,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor: ...


@dataclass
class DecodeState:
    """Everything that changes while one batch is decoded; an empty one is filled by the first call it is given to.

    It belongs to one call at a time. After the call, even one that was closed or failed, it can be given to the next.
    The stream is the sequence of positions the model reads. `tokens` are its last ids: a prompt given as embeddings
    only comes before them.

    Attributes:
        tokens: Token ids of prompt and answer, (batch, tokens).
        position_ids: Rotary positions of the stream, (batch or 1, stream).
        attention_mask: 0 for padding, (batch, stream); None without padding.
        prompt_embeds: Embeddings that the backbone reads at the start of the stream in place of those of `tokens`,
            (batch, prompt, hidden). Other depths read them only where there are no ids.
        cache: Keys and values of all layers; None computes everything again in each step.
        num_read: num_read[d]: how many positions depth d has read. Depth d pairs the hidden state of a place with the
            token d places to the right, so the first d positions need no reading and count as read.
        pending: pending[d]: hidden states of depth d - 1 that depth d has not read yet, (batch, time, hidden).
        num_backbone_layers: Layers of depth 0; each other depth has one layer.
        model_id: `id` of the model that has read the stream, whose cache is of no use to another one.
    """

    tokens: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.int64))
    position_ids: Tensor = field(default_factory=lambda: torch.empty((1, 0), dtype=torch.int64))
    attention_mask: Tensor | None = None
    prompt_embeds: Tensor | None = None
    cache: Cache | None = None
    num_read: list[int] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)
    num_backbone_layers: int = 0
    model_id: int | None = None

    @property
    def length(self) -> int:
        """Positions in the stream, read or not."""
        return self.position_ids.shape[1]

    def append(self, next_tokens: Tensor) -> None:
        """Add one token to each row, (batch,)."""
        self.tokens = torch.cat([self.tokens, next_tokens[:, None]], dim=1)
        self.position_ids = torch.cat([self.position_ids, self.position_ids[:, -1:] + 1], dim=1)
        if self.attention_mask is not None:
            self.attention_mask = torch.cat([self.attention_mask, torch.ones_like(self.attention_mask[:, :1])], dim=1)

    def embed(self, model: MTPModel, depth: int, start: int, end: int) -> Tensor:
        """Embed positions `start` to `end` of the stream as one depth reads them, (batch, end - start, hidden)."""
        offset = self.length - self.tokens.shape[1]  # position of the first token
        has_prompt = self.prompt_embeds is not None and (depth == BACKBONE or offset > 0)
        split = min(max(self.prompt_embeds.shape[1] if has_prompt else 0, start), end)
        token_embeds = model.get_input_embeddings()(self.tokens[:, split - offset : end - offset])
        return torch.cat([self.prompt_embeds[:, start:split], token_embeds], dim=1) if split > start else token_embeds

    def read(self, model: MTPModel, depth: int, end: int) -> Tensor:
        """Let one depth read all positions before `end` that it has not read yet.

        Returns: Its hidden states there, (batch, positions read, hidden); the last one predicts the token at `end`.
        """
        start = self.num_read[depth]
        inputs_embeds, position_ids = self.embed(model, depth, start, end), self.position_ids[:, start:end]
        mask = None if self.attention_mask is None else self.attention_mask[:, : end - depth]
        if depth == BACKBONE:
            hidden_states = model.model(
                inputs_embeds=inputs_embeds,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=self.cache is not None,
            ).last_hidden_state
        else:
            hidden_states = model.mtp_step(depth, inputs_embeds, self.pending[depth], position_ids, mask, self.cache)
            self.pending[depth] = hidden_states[:, :0]
        if depth + 1 < len(self.pending):
            self.pending[depth + 1] = torch.cat([self.pending[depth + 1].to(hidden_states), hidden_states], dim=1)
        self.num_read[depth] = end
        return hidden_states

    def advance(self, model: MTPModel, depth: int) -> Tensor:
        """Let one depth read up to the end of the stream.

        Returns: Logits of the next token, (batch, vocabulary), float32.
        """
        if self.cache is None:
            self.forget()
            for earlier in range(depth):
                self.read(model, earlier, self.length - depth + earlier)
        return model.lm_head(self.read(model, depth, self.length)[:, -1:])[:, -1].float()

    def forget(self) -> None:
        """Drop everything that was read; tokens and positions remain."""
        self.num_read = list(range(len(self.num_read)))
        self.pending = [hidden_states[:, :0] for hidden_states in self.pending]

    def rewind(self, model: MTPModel, num_kept: int) -> int:
        """Shorten the stream to `num_kept` positions, or to none if this model cannot continue from the cache.

        Returns: How many positions the backbone does not have to read again, at most `num_kept`.
        """
        if num_kept > 0 and self._continues(model):
            self.crop(num_kept)
            return self.num_read[BACKBONE]
        self.__init__()
        return 0

    def _continues(self, model: MTPModel) -> bool:
        """Tell whether there is a cache of this model that can be cropped; sliding windows forget and cannot."""
        if self.model_id != id(model) or self.cache is None:
            return False
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def crop(self, num_kept: int) -> None:
        """Shorten the stream to `num_kept` positions, with the caches and pending hidden states of all depths.

        A depth whose reading is cut off needs hidden states again that were dropped once it had read them, so the depth
        before it reads those positions again, and so on down to the backbone.
        """
        self.tokens = self.tokens[:, : max(0, num_kept - self.length + self.tokens.shape[1])]
        self.position_ids = self.position_ids[:, :num_kept]
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[:, :num_kept]
        limit = num_kept
        for depth in reversed(range(len(self.num_read))):
            kept = max(depth, min(self.num_read[depth], limit))
            limit = num_kept if kept == self.num_read[depth] else min(num_kept, kept - 1)
            if depth + 1 < len(self.num_read):
                self.pending[depth + 1] = self.pending[depth + 1][:, : kept + 1 - self.num_read[depth + 1]]
            self.num_read[depth] = kept
        self._crop_cache()

    def _crop_cache(self) -> None:
        """Shorten each cache layer to the positions that count as read, also after a step that failed half-way."""
        if self.cache is None:
            return
        for number, layer in enumerate(self.cache.layers):
            depth = max(0, number + 1 - self.num_backbone_layers)
            if (excess := layer.get_seq_length() - (self.num_read[depth] - depth)) > 0:
                layer.crop(-int(excess))


def begin_decoding(
    model: MTPModel,
    input_ids: Tensor,
    state: DecodeState | None = None,
    *,
    position_ids: Tensor,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = None,
    logits_to_keep: int | None = None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
) -> DecodeState:
    """Prepare a state for a prompt, keeping what it has read of the longest common prefix.

    Args:
        input_ids: The whole prompt, (batch, time); without ids if it is given as `inputs_embeds` only.
        state: State of an earlier call, which is changed; None or an empty one to start from scratch.
        position_ids: Positions of the prompt, (batch or 1, time).
        attention_mask: Mask of the prompt, (batch, time), 0 for padding.
        inputs_embeds: Embeddings of the whole prompt, (batch, time, hidden). Those of the kept prefix are not compared.
        past_key_values: Empty cache for a state without one; None to decode without a cache.
        use_cache, logits_to_keep: No effect; transformers passes them to every decoding function.
        output_attentions, output_hidden_states: Not available.
    Returns: `state`, or a new one.
    Raises: ValueError for a prompt without tokens, and for ids, embeddings and cache that do not fit together.
    """
    if output_attentions or output_hidden_states:
        name = "output_attentions" if output_attentions else "output_hidden_states"
        raise ValueError(f"{name} is not available with MTP modules; give mtp_inference_mode='vanilla'")
    batch_size, num_ids = input_ids.shape
    num_given = num_ids if inputs_embeds is None else inputs_embeds.shape[1]
    if not num_given:
        raise ValueError("a prompt must have at least one token, got none; begin with a start token")
    if inputs_embeds is not None and num_ids not in (0, num_given):
        raise ValueError(f"input_ids and inputs_embeds must be equally long, got {num_ids} and {num_given} tokens")
    if past_key_values is not None and (num_cached := int(past_key_values.get_seq_length())):
        raise ValueError(
            f"past_key_values must be empty, got {num_cached} tokens; to continue, give the decode_state of the "
            "earlier call and all input_ids"
        )
    state = DecodeState() if state is None else state
    prompt = DecodeState(input_ids, position_ids, attention_mask)
    # the last position is read again for its logits
    if not state.rewind(model, min(_common_prefix(state, prompt), prompt.length - 1)):
        num_depths = 1 + model.config.num_nextn_predict_layers
        state.cache, state.num_read = past_key_values, list(range(num_depths))
        state.pending = [torch.empty((batch_size, 0, model.config.hidden_size))] * num_depths
        state.num_backbone_layers, state.model_id = model.config.num_backbone_layers, id(model)
    state.tokens, state.position_ids, state.attention_mask = input_ids, position_ids, attention_mask
    state.prompt_embeds = inputs_embeds
    return state


def _common_prefix(state: DecodeState, prompt: DecodeState) -> int:
    """Count the first positions that agree in tokens, rotary positions and padding."""
    if state.tokens.shape[0] != prompt.tokens.shape[0] or state.length != state.tokens.shape[1]:
        return 0
    num_shared = min(state.tokens.shape[1], prompt.tokens.shape[1])
    masks = [
        torch.ones_like(one.tokens) if one.attention_mask is None else one.attention_mask for one in (state, prompt)
    ]
    pairs = [(state.tokens, prompt.tokens), (state.position_ids, prompt.position_ids), masks]
    same = torch.stack([(a[:, :num_shared] == b[:, :num_shared]).all(dim=0) for a, b in pairs]).all(dim=0)
    return int(same.cumprod(dim=0).sum())

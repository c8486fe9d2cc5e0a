"""Cascaded multi-token-prediction (MTP) modules for a language model of transformers (VITA-Audio, arXiv 2505.03739).

Depth 0 is the backbone. At each position i, depth k reads the final-normed hidden state of depth k - 1 and the
embedding of token i + k, and predicts token i + k + 1. Depth k is made by MTP module k - 1: two norms, a projection and
decoder layer `num_backbone_layers + k - 1`; it shares the final norm and the head of the backbone.

The classes here come before those of a base, such as Qwen2, in a class of both; see `qwen2_mtp.py`. The base must be a
decoder like Llama: `embed_tokens`, `layers`, `norm`, `rotary_emb` and an `lm_head` without a bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from vita_audio.models.alignment import alignment_loss
from vita_audio.models.coordinator import Coordinator
from vita_audio.models.mtp_config import MTPConfig
from vita_audio.models.mtp_generation import MTPGenerationMixin
from vita_audio.models.mtp_loss import MTPLoss, MTPOutput
from vita_audio.models.packed_rows import is_packed
from vita_audio.models.slots import Slots

Masks = dict[str, Tensor | None]  # attention type -> mask in the form its attention back end wants


class MTPBackbone:
    """A decoder whose `forward` runs the backbone layers and whose `run_layers` runs any of them."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Masks | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the backbone; arguments as in the base, whose `attention_mask` may be prepared masks too.

        Rows with several documents get no new cache: transformers separates documents only without one.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + num_past
        padding = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None
        if use_cache and past_key_values is None and not is_packed(position_ids, padding):
            past_key_values = DynamicCache(config=self.config)
        layers, masks = range(self.config.num_backbone_layers), attention_mask
        if not isinstance(masks, dict):
            masks = self.attention_masks(inputs_embeds, layers, position_ids, attention_mask, past_key_values)
        hidden_states = self.run_layers(inputs_embeds, layers, position_ids, masks, past_key_values, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def attention_masks(
        self,
        inputs_embeds: Tensor,
        layers: range,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Masks:
        """Prepare the mask of every attention type among `layers`.

        Args:
            inputs_embeds: Input of the layers, (batch, time, hidden).
            attention_mask: Padding mask, (batch, cached + time), 0 for padding.
        Raises: ValueError if rows with several documents come with a padding mask, which would join the documents.
        """
        is_padding_mask = attention_mask is not None and attention_mask.ndim == 2
        if is_padding_mask and past_key_values is None and is_packed(position_ids, attention_mask):
            raise ValueError(
                "rows with several documents (position_ids restart) need attention_mask=None, got a padding mask; "
                "mark padding by labels instead"
            )
        masks = {}
        for layer in layers:
            kind = self.config.layer_types[layer]
            if kind not in masks:
                masks[kind] = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind](
                    config=self.config,
                    inputs_embeds=inputs_embeds,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                    layer_idx=layer,
                )
        return masks

    def run_layers(
        self,
        inputs_embeds: Tensor,
        layers: range,
        position_ids: Tensor,
        masks: Masks,
        past_key_values: Cache | None = None,
        *,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        """Run some decoder layers, without the final norm.

        Args:
            inputs_embeds: Input of the first of them, (batch, time, hidden).
            position_ids: Rotary positions, (batch or 1, time); a restart begins a new document.
            masks: Masks made by `attention_masks` for these layers.
            position_embeddings: Cosine and sine of the positions; None: they are computed.
        Returns: (batch, time, hidden).
        """
        shape = inputs_embeds.shape
        if (
            is_flash_attention_requested(self.config)
            and shape[0] > 1
            and past_key_values is None
            and all(mask is None for mask in masks.values())
            and is_packed(position_ids)
        ):  # flash attention looks for documents in a single row only
            position_ids = position_ids.expand(shape[:2]).reshape(1, -1)
            inputs_embeds = inputs_embeds.reshape(1, -1, shape[-1])
        hidden_states = inputs_embeds
        if position_embeddings is None:
            position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in layers:
            hidden_states = self.layers[layer](
                hidden_states,
                attention_mask=masks[self.config.layer_types[layer]],
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=past_key_values is not None,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        return hidden_states.view(shape)


class MTPForCausalLM(MTPGenerationMixin):
    """Language model with MTP modules; parameter names are those of the released weights.

    Attributes:
        backbone_class: Class of the decoder, an `MTPBackbone`.
    """

    backbone_class: type[PreTrainedModel]
    _keys_to_ignore_on_load_unexpected = (r"^mtp_coordinators\.",)  # a model that does not train them lacks them

    def __init__(self, config: MTPConfig):
        PreTrainedModel.__init__(self, config)  # the base's own would build a second backbone
        num_modules, hidden_size = config.num_nextn_predict_layers, config.hidden_size
        self.model = self.backbone_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(hidden_size, config.vocab_size, bias=False)
        self.mtp_projs = nn.ModuleList(nn.Linear(2 * hidden_size, hidden_size, bias=False) for _ in range(num_modules))
        norm_class = type(self.model.norm)
        self.mtp_embed_norms = nn.ModuleList(norm_class(hidden_size, config.rms_norm_eps) for _ in range(num_modules))
        self.mtp_hidden_norms = nn.ModuleList(norm_class(hidden_size, config.rms_norm_eps) for _ in range(num_modules))
        self.mtp_coordinators = Coordinator(hidden_size, num_modules if config.mtp_coordinator_weight else 0)
        self.mtp_loss = MTPLoss()
        self.post_init()

    @property
    def trains_backbone(self) -> bool:
        """Whether the head trains or, in a model with an adapter, any layer of the backbone."""
        parts = [self.lm_head]
        if self._hf_peft_config_loaded:
            parts += self.model.layers[: self.config.num_backbone_layers]
        # reading lm_head.weight here would make ZeRO-3 hold the whole head during the whole step
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def mtp_step(
        self,
        depth: int,
        inputs_embeds: Tensor,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        masks: Masks | None = None,
        **kwargs,
    ) -> Tensor:
        """Run one prediction depth on pairs of a hidden state and a later token.

        Args:
            depth: 1 for the first depth after the backbone.
            inputs_embeds: Embeddings of the tokens `depth` places right of the hidden states, (batch, time, hidden).
            hidden_states: Final-normed output of the depth before, (batch, time, hidden).
            position_ids: Positions of those tokens, (batch or 1, time).
            attention_mask: Padding mask, (batch, cached + time); a pair is padding where its hidden state is.
            masks: Masks made by `MTPBackbone.attention_masks` in place of `attention_mask`.
            kwargs: Arguments of `MTPBackbone.run_layers`.
        Returns: Final-normed hidden states, (batch, time, hidden); the head turns them into logits.
        Raises: ValueError for a depth that has no module.
        """
        if not 1 <= depth <= self.config.num_nextn_predict_layers:
            raise ValueError(
                f"depth must be in 1..{self.config.num_nextn_predict_layers}, got {depth}; 0 has no module"
            )
        module = depth - 1
        layer = self.config.num_backbone_layers + module
        layers = range(layer, layer + 1)
        pairs = [self.mtp_embed_norms[module](inputs_embeds), self.mtp_hidden_norms[module](hidden_states)]
        hidden_states = self.mtp_projs[module](torch.cat(pairs, dim=-1))
        if masks is None:
            masks = self.model.attention_masks(hidden_states, layers, position_ids, attention_mask, past_key_values)
        hidden_states = self.model.run_layers(hidden_states, layers, position_ids, masks, past_key_values, **kwargs)
        return self.model.norm(hidden_states)

    def read_depth(
        self,
        depth: int,
        inputs_embeds: Tensor,
        earlier: Tensor | None,
        position_ids: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        masks: Masks,
        slots: Slots,
    ) -> Tensor:
        """Run the backbone (depth 0) or one prediction depth while decoding.

        Args:
            inputs_embeds: Embeddings of the tokens that the depth has not read yet, (rows, time, hidden).
            earlier: Hidden states of the depth before, one position to the left of each token; None at depth 0.
            position_ids: (rows, time).
            position_embeddings: Cosine and sine of them, (rows, time, size) each.
            masks: Mask of every attention type.
            slots: Where keys and values lie.
        Returns: Final-normed hidden states, (rows, time, hidden).
        """
        options = {"position_embeddings": position_embeddings}
        if depth > 0:
            return self.mtp_step(
                depth, inputs_embeds, earlier, position_ids, past_key_values=slots, masks=masks, **options
            )
        layers = range(self.config.num_backbone_layers)
        return self.model.norm(self.model.run_layers(inputs_embeds, layers, position_ids, masks, slots, **options))

    def mtp_chain(
        self,
        inputs_embeds: Tensor,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        masks: Masks | None = None,
    ) -> Iterator[Tensor]:
        """Yield the hidden states of depth 1, 2 and so on when all tokens are known.

        Place i of depth k pairs hidden state i with token i + k. The last k places of a document have no such token of
        their own: their hidden states are meaningless and, being last, influence no other place.

        Args:
            inputs_embeds: Token embeddings, (batch, time, hidden).
            hidden_states: Backbone output, (batch, time, hidden).
            position_ids: (batch or 1, time); restarts at 0 where a packed document begins.
            attention_mask: Padding mask, (batch, time), 0 for padding.
            masks: Masks made by `MTPBackbone.attention_masks` in place of `attention_mask`.
        """
        layers = range(self.config.num_backbone_layers, self.config.num_hidden_layers)
        if masks is None:
            masks = self.model.attention_masks(inputs_embeds, layers, position_ids, attention_mask)
        for depth in range(1, self.config.num_nextn_predict_layers + 1):
            shift = min(depth, inputs_embeds.shape[1])
            shifted = F.pad(inputs_embeds[:, shift:], (0, 0, 0, shift))  # (batch, time, hidden)
            hidden_states = self.mtp_step(depth, shifted, hidden_states, position_ids + depth, masks=masks)
            yield hidden_states

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        score_backbone: bool = True,
        code_ids: range | None = None,
        **kwargs,
    ) -> MTPOutput:
        """Run the backbone and, given labels, all depths; arguments as in the base except:

        Args:
            position_ids: (batch, time); restarts at 0 where a packed document begins, and then `attention_mask` must be
                None. No document sees another one, and no target lies in another one.
            inputs_embeds: Input of the backbone; the modules read the embeddings of `input_ids` if these are given too.
            labels: (batch, time), IGNORE_INDEX for no target. With a frozen head, and no adapter in its layers, the
                backbone counts as frozen: its loss is only reported, and the modules' inputs are detached.
            loss_weights: Factor of each label in the loss of every depth, (batch, time).
            num_items_in_batch: Divisor of every summed loss; None: the sum of the target weights of each depth.
            score_backbone: Also report the loss of a frozen backbone.
            code_ids: Ids of the audio codes, for the report of their losses and for the alignment loss.
        Returns: MTPOutput; while training with labels it has no `logits`, which are too large to keep.
        """
        train_backbone = labels is None or self.trains_backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and train_backbone):
            token_embeds = inputs_embeds if input_ids is None else self.model.embed_tokens(input_ids)
            outputs = self.model(
                inputs_embeds=token_embeds if inputs_embeds is None else inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
            hidden_states = outputs.last_hidden_state  # (batch, time, hidden)
            logits = None
            if labels is None or not self.training:
                kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
                logits = self.lm_head(hidden_states[:, kept])
        losses = {}
        if labels is not None:
            options = {"num_items_in_batch": num_items_in_batch, "score_backbone": score_backbone}
            options |= {"loss_weights": loss_weights, "code_ids": code_ids}
            losses = self._score_depths(token_embeds, hidden_states, labels, position_ids, attention_mask, **options)
            losses |= self._align(losses, token_embeds, input_ids, position_ids, code_ids, num_items_in_batch)
        return MTPOutput(
            **losses,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _align(
        self,
        losses: dict[str, Tensor | None],
        token_embeds: Tensor,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        code_ids: range | None,
        num_items_in_batch: Tensor | int | None,
    ) -> dict[str, Tensor]:
        """Return the loss with the alignment loss, if embeddings train; a batch counts by its share of the targets."""
        if not (self.config.alignment_weight and code_ids and token_embeds.requires_grad):
            return {}
        alignment = alignment_loss(token_embeds, input_ids, position_ids, code_ids)
        share = 1
        if num_items_in_batch is not None:
            share = losses["num_targets"][0] / torch.as_tensor(num_items_in_batch).clamp(min=1)
        loss = losses["loss"] + self.config.alignment_weight * share * alignment
        return {"loss": loss, "alignment": alignment.detach()}

    def _score_depths(
        self,
        token_embeds: Tensor,
        hidden_states: Tensor,
        labels: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        **options,
    ) -> dict[str, Tensor | None]:
        """Return loss and logging fields of `MTPOutput` from the backbone's output; `options` of `MTPLoss.forward`."""
        if position_ids is None:
            position_ids = torch.arange(labels.shape[1], device=labels.device)[None]
        states = [hidden_states, *self.mtp_chain(token_embeds, hidden_states, position_ids, attention_mask)]
        losses = self.mtp_loss(
            states,
            labels,
            position_ids,
            head=self.lm_head,
            mtp_weight=self.config.mtp_loss_weight,
            kl_weight=self.config.mtp_kl_weight,
            depth_weights=self.config.mtp_depth_weights,
            trains_backbone=self.trains_backbone,
            **options,
        )
        if self.mtp_coordinators:
            weights = {name: options[name] for name in ("loss_weights", "num_items_in_batch")}
            mixture, means = self.mtp_coordinators(states[1:], labels, position_ids, head=self.lm_head, **weights)
            losses["loss"] = losses["loss"] + self.config.mtp_coordinator_weight * mixture
            losses |= {"mixture": mixture.detach(), "mixture_weights": means}
        return losses

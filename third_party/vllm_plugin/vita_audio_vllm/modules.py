"""The MTP modules as vLLM's drafts: what `MultiModuleMTPSpeculator` and, for one module, `EagleProposer` call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.sequence import IntermediateTensors

from vita_audio_vllm.config import EngineConfig
from vita_audio_vllm.weights import Weights, module_weights


class Qwen2MTPModules(nn.Module):
    """The parts of the modules that have the names of the backbone's parts in a checkpoint: layers and final norm.

    Attributes:
        embed_tokens: Embeddings of the backbone, put here by the engine.
    """

    def __init__(self, vllm_config: VllmConfig, config: EngineConfig, prefix: str):
        super().__init__()
        first = config.num_hidden_layers
        self.layers = nn.ModuleDict(
            {
                str(layer): LlamaDecoderLayer(vllm_config, f"{prefix}.layers.{layer}", config)
                for layer in range(first, first + config.num_nextn_predict_layers)
            }
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.embed_tokens = None


class Qwen2MTPDrafts(nn.Module):
    """Distinct modules in cascade: module m reads the hidden states of the module before it and later tokens.

    Embeddings and head are those of the backbone, put here by the engine.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = config = vllm_config.speculative_config.draft_model_config.hf_config
        size, num_modules = config.hidden_size, config.num_nextn_predict_layers
        self.model = Qwen2MTPModules(vllm_config, config, maybe_prefix(prefix, "model"))
        self.mtp_projs = nn.ModuleList(nn.Linear(2 * size, size, bias=False) for _ in range(num_modules))
        self.mtp_embed_norms = nn.ModuleList(RMSNorm(size, eps=config.rms_norm_eps) for _ in range(num_modules))
        self.mtp_hidden_norms = nn.ModuleList(RMSNorm(size, eps=config.rms_norm_eps) for _ in range(num_modules))
        self.lm_head = None
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        hidden_states: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        spec_step_idx: int = 0,
    ) -> Tensor:
        """Run one module.

        Args:
            input_ids: Token `spec_step_idx + 1` places right of each hidden state, (tokens,).
            positions: Positions of the hidden states, (tokens,). Those of the paired tokens, which the module was
                trained with, are larger by the same number for all; rotary attention sees differences only.
            hidden_states: Final-normed output of the backbone or of the module before, (tokens, hidden).
            inputs_embeds: Embeddings in place of the tokens.
            spec_step_idx: The module, from 0.
        Returns: Final-normed hidden states, (tokens, hidden).
        """
        module = spec_step_idx % self.config.num_nextn_predict_layers
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(input_ids)
        pairs = [self.mtp_embed_norms[module](inputs_embeds), self.mtp_hidden_norms[module](hidden_states)]
        hidden_states = self.mtp_projs[module](torch.cat(pairs, dim=-1))
        layer = self.model.layers[str(self.config.num_hidden_layers + module)]
        hidden_states, residual = layer(positions, hidden_states, None)
        return self.model.norm(hidden_states, residual)[0]

    def compute_logits(self, hidden_states: Tensor, spec_step_idx: int = 0) -> Tensor | None:
        """Return the logits of hidden states of any module, (tokens, vocabulary); the head is shared."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Weights) -> set[str]:
        """Load the modules from a checkpoint of the whole model; returns the names of the parameters."""
        return AutoWeightsLoader(self).load_weights(
            module_weights(weights, self.config), mapper=LlamaModel.hf_to_vllm_mapper
        )

"""The backbone of a VITA-Audio model in vLLM: reads and writes text and audio tokens, one at a time."""

from __future__ import annotations

from vllm.model_executor.models.llama import LlamaForCausalLM

from vita_audio_vllm.weights import Weights, backbone_weights


class Qwen2MTPForCausalLM(LlamaForCausalLM):
    """Qwen2 without its MTP modules.

    Qwen2 is Llama with biases (`EngineConfig.qkv_bias`). vLLM's own Qwen2 class ignores `head_dim`, which small models
    need, since the CPU back end has kernels for a few sizes of heads only.
    """

    def load_weights(self, weights: Weights) -> set[str]:
        """Load a checkpoint, without the weights of the modules."""
        return super().load_weights(backbone_weights(weights, self.config))

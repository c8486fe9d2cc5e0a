"""Configuration of a checkpoint in the terms of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Config
from vllm.platforms import current_platform

from vita_audio_vllm.checkpoint import MODEL_TYPE, PLUS_MODEL_TYPE, check_fields


class EngineConfig(Qwen2Config):
    """Configuration of Qwen2 with MTP modules, as vLLM has it for other models with MTP.

    Args:
        num_hidden_layers: Backbone layers; in the checkpoint's own config.json it also counts the modules.
        num_nextn_predict_layers: MTP modules. Module m has the layer `num_hidden_layers + m`.
        head_dim: Size of an attention head in the engine; at least that of the checkpoint.
        qkv_bias: Qwen2 has biases there, which vLLM's Llama classes add if this is set.
    """

    model_type = MODEL_TYPE

    num_nextn_predict_layers: int = 0
    head_dim: int | None = None
    qkv_bias: bool = True

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **options: Any) -> Any:
        """Convert the fields of a checkpoint's config.json. Raises: ValueError as `check_fields` does."""
        check_fields(config_dict)
        fields = dict(config_dict)
        fields.pop("auto_map", None)  # classes in Python files of the checkpoint, which are not run
        fields.pop("layer_types", None)  # all are full attention
        fields["num_hidden_layers"] -= fields.get("num_nextn_predict_layers", 0)
        return super().from_dict(fields, **options)

    def __post_init__(self, **options: Any):
        super().__post_init__(**options)
        self.head_dim = engine_head_size(self.checkpoint_head_dim)
        if self.head_dim != self.checkpoint_head_dim:
            self.rope_parameters["partial_rotary_factor"] = self.checkpoint_head_dim / self.head_dim

    @property
    def checkpoint_head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class PlusEngineConfig(EngineConfig):
    """The same for a model with a speech encoder, which stays with the client."""

    model_type = PLUS_MODEL_TYPE


def engine_head_size(size: int) -> int:
    """Return the smallest size of attention heads that the engine has kernels for and that holds `size`.

    Raises: ValueError if there is none.
    """
    if not current_platform.is_cpu():
        return size
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size > max(sizes):
        raise ValueError(f"attention heads must have at most {max(sizes)} elements in the engine, got {size}")
    return min(one for one in sizes if one >= size)

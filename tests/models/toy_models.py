"""Toy models and golden cases for the model tests."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vita_audio.models import (
    LlamaMTPForCausalLM,
    MTPForCausalLM,
    Qwen2MTPForCausalLM,
    Qwen2MTPSenseVoiceForCausalLM,
    Qwen3MTPForCausalLM,
)
from vita_audio.models.decode_state import DecodeState

ASSETS = Path(__file__).parent.parent / "assets" / "model"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {  # options of `make_model`
    "qwen2": {"model_class": Qwen2MTPForCausalLM},
    "qwen3": {"model_class": Qwen3MTPForCausalLM, "head_dim": 16},
    "llama": {"model_class": LlamaMTPForCausalLM, "rope_parameters": LLAMA3_ROPE},
}
LENGTHS = (12, 1, 7, 12, 3, 9, 2, 12)  # of the prompts in `make_padded_prompts`


def load_case(name: str) -> SimpleNamespace:
    """Load a golden case: case (dict), inputs, expected (json) and tensors (safetensors) where they exist."""
    folder = ASSETS / name

    def read(file: str, loader):
        return loader(folder / file) if (folder / file).exists() else None

    def read_json(path: Path):
        return json.loads(path.read_text(encoding="utf-8"))

    return SimpleNamespace(
        folder=folder,
        case=read("case.json", read_json),
        inputs=read("inputs.safetensors", load_file),
        expected=read("expected.json", read_json),
        tensors=read("expected.safetensors", load_file),
    )


def load_model(folder: Path, attention: str = "sdpa") -> Qwen2MTPForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)


def make_model(
    num_modules: int = 2, *, attention: str = "sdpa", seed: int = 0, model_class=Qwen2MTPForCausalLM, **fields
) -> MTPForCausalLM:
    """Make a toy model in eval mode whose weights are all random, norms and biases too."""
    fields = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4} | fields
    fields.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 1e4})
    config = model_class.config_class(
        num_hidden_layers=2 + num_modules,
        num_nextn_predict_layers=num_modules,
        num_key_value_heads=2,
        **fields,
    )
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def make_agreeing_model(num_modules: int = 4, *, disagreement: float = 0.15, **options) -> MTPForCausalLM:
    """Make a toy model whose modules often predict what its backbone does.

    All depths pass the embedding of the latest token on; layers and the modules' projections add a little to it.

    Args:
        disagreement: How much they add.
    """
    model = make_model(num_modules, **options)
    identity = torch.eye(model.config.hidden_size)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= disagreement
            layer.mlp.down_proj.weight *= disagreement
        for projection, norm in zip(model.mtp_projs, model.mtp_embed_norms, strict=True):
            norm.weight.fill_(1)
            projection.weight *= disagreement
            projection.weight[:, : len(identity)] += identity
    return model


def make_plus_model(num_modules: int = 2, **options) -> Qwen2MTPSenseVoiceForCausalLM:
    """Make a toy model with a speech encoder in the same way."""
    sizes = {"output_size": 16, "linear_units": 24, "num_blocks": 2, "tp_blocks": 1, "vocab_size": 20}
    return make_model(num_modules, model_class=Qwen2MTPSenseVoiceForCausalLM, **{"audio_config": sizes, **options})


def random_audios(*lengths: int) -> list[torch.Tensor]:
    """Make features of audios, (length, 560) each."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, 560, generator=generator) for length in lengths]


def check_consistent(state: DecodeState) -> None:
    """Check that no depth has read behind the stream or ahead of the depth before it, and that the slots agree."""
    assert state.lengths == [state.length] * len(state.tokens) and state.tokens.shape[1] == state.length
    for row in range(len(state.tokens)):
        limit = state.length
        for depth, num_read in enumerate(state.slots.num_read):
            assert depth <= num_read[row] <= max(depth, limit)
            limit = min(state.length, num_read[row] + 1)
    for layer in range(len(state.slots.keys)):
        depth = max(0, layer + len(state.num_read) - len(state.slots.keys))
        assert state.slots.get_seq_length(layer) == state.num_read[depth] - depth


def make_padded_prompts() -> dict[str, torch.Tensor]:
    """Return eight rows of different `LENGTHS`, padded on the left: ids and mask, (8, 12)."""
    ids = torch.randint(3, 100, (8, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([(torch.arange(12) >= 12 - length).long() for length in LENGTHS])
    return {"input_ids": ids * mask, "attention_mask": mask}

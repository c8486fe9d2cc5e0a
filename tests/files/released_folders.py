"""Checkpoint folders turned into the forms in which models are published."""

import json
from pathlib import Path

from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.loading import load_weights, read_config

TRAP = "raise RuntimeError('code of a checkpoint was run')\n"


def as_shards(folder: Path) -> None:
    model, _ = load_weights(folder, read_config(folder, SPEECH_CONFIGS))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2


def as_the_public_code_saves(folder: Path) -> None:
    """Fields of transformers 4.48, classes by `auto_map`, and their code beside the weights."""
    values = json.loads((folder / "config.json").read_text())
    theta = values.pop("rope_parameters")["rope_theta"]
    values.pop("layer_types")
    values |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": values.pop("dtype"), "speech_token_offset": 1}
    names = {"AutoConfig": "configuration_qwen2.Qwen2MTPConfig", "AutoModelForCausalLM": "modeling_qwen2.Qwen2MTP"}
    values |= {"auto_map": names, "transformers_version": "4.48.3", "_attn_implementation_autoset": True}
    (folder / "config.json").write_text(json.dumps(values))
    for name in ("configuration_qwen2.py", "modeling_qwen2.py", "tokenization_qwen2.py"):
        (folder / name).write_text(TRAP)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_qwen2.Qwen2Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
